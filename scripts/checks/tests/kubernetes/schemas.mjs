// Validates the objects in npm.json against the schemas that only npm has: NODE_MODULES NPM.JSON
// The validators know types and patterns. Unknown fields are found by the names in the type declarations.
import {readdirSync, readFileSync} from "node:fs"
import {pathToFileURL} from "node:url"

const [modules, file] = process.argv.slice(2)
const packages = {"gateway.networking.k8s.io": "gateway-api", "external-secrets.io": "external-secrets"}
const known = new Map()

function fieldsOf(folder) {
  const texts = readdirSync(folder).filter(name => name.endsWith(".d.ts")).map(name => readFileSync(`${folder}/${name}`, "utf8"))
  return new Set(texts.flatMap(text => [...text.matchAll(/^ *"?(\w+)"?\??:/gm)].map(found => found[1])))
}

function unknown(value, fields) {
  if (Array.isArray(value)) return value.flatMap(each => unknown(each, fields))
  if (value === null || typeof value !== "object") return []
  return Object.entries(value).flatMap(([key, each]) => [...(fields.has(key) ? [] : [key]), ...unknown(each, fields)])
}

const objects = JSON.parse(readFileSync(file, "utf8"))
let findings = 0
for (const {name, document} of objects) {
  const [group, version] = document.apiVersion.split("/")
  const root = `${modules}/@kubernetes-models/${packages[group]}`
  const folder = `${root}/${group}/${version}`
  if (!known.has(folder)) known.set(folder, [await import(pathToFileURL(`${folder}/index.js`)), fieldsOf(`${root}/_fields`.replace("_fields", `${group}/${version}`))])
  const [models, fields] = known.get(folder)
  try {
    new models[document.kind](document).validate()
    const wrong = unknown(document.spec, fields)
    if (wrong.length) throw new Error(`unknown: ${wrong.join(", ")}`)
  } catch (error) {
    findings++
    console.log(`${name}: ${error.message}`)
  }
}
console.log(`schemas from npm: ${objects.length} objects, ${findings} findings`)
process.exit(findings ? 1 : 0)

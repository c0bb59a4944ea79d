// dependencies = ["@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1"]
/*
"""Node's gRPC client, with the .proto files of this repository, V1 and V2. Arguments: gRPC address, REST URL."""
*/
const assert = require("node:assert");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const protos = path.join(__dirname, "../../../tfserving_protos/tfserving_protos/protos");
const definition = loader.loadSync(["serving.proto", "open_inference.proto"], { includeDirs: [protos], keepCase: true });
const { tensorflow, inference } = grpc.loadPackageDefinition(definition);
const credentials = grpc.credentials.createInsecure();
const row = [5.1, 3.5, 1.4, 0.2];

// Resolves with the response; a failed call ends this process.
function call(client, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + 30_000;
    client[method](request, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

function largest(scores) {
  return scores.indexOf(Math.max(...scores));
}

async function main() {
  const v1 = new tensorflow.serving.PredictionService(process.argv[2], credentials);
  const tensor = { dtype: "DT_FLOAT", tensor_shape: { dim: [{ size: 1 }, { size: 4 }] }, float_val: row };
  const predicted = await call(v1, "Predict", { model_spec: { name: "iris" }, inputs: { input: tensor } });
  assert.equal(largest(predicted.outputs.output.float_val), 0);

  const v2 = new inference.GRPCInferenceService(process.argv[2], credentials);
  assert.ok((await call(v2, "ServerReady", {})).ready);
  const input = { name: "input", datatype: "FP32", shape: [1, 4] };
  const typed = { ...input, contents: { fp32_contents: row } };
  const inferred = await call(v2, "ModelInfer", { model_name: "iris", inputs: [typed] });
  assert.equal(largest(inferred.outputs[0].contents.fp32_contents), 0);
  const raw = [Buffer.from(Float32Array.from(row).buffer)];
  const answer = await call(v2, "ModelInfer", { model_name: "iris", inputs: [input], raw_input_contents: raw });
  const bytes = Uint8Array.from(answer.raw_output_contents[0]);
  assert.equal(largest([...new Float32Array(bytes.buffer)]), 0);
  v1.close();
  v2.close();
}

main();

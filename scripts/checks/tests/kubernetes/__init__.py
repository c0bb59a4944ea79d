"""Checks of the Kubernetes manifests that need no cluster: `make test-kubernetes`."""

"""Baseline for `make bench`: a grpc.aio server that parses a PredictRequest and answers a constant."""

import asyncio
import sys

import grpc

from tfserving_protos import messages, services


async def main(port: int) -> None:
    """Serve until killed."""
    response = messages.PredictResponse(model_spec=messages.ModelSpec(name="iris"))
    response.outputs["output"].float_val.extend([0.2, 0.3, 0.5])

    async def predict(_request: object, _context: object) -> messages.PredictResponse:
        return response

    server = grpc.aio.server()
    behaviors = dict.fromkeys(services.METHODS[services.PREDICTION_SERVICE], predict)
    server.add_generic_rpc_handlers((services.generic_handler(services.PREDICTION_SERVICE, behaviors),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

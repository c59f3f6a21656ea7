"""A server that will be killed: starts TorchServe, says so, and waits. python owner.py ARCHIVE WORK_DIR"""

import asyncio
import sys
from pathlib import Path

from longtide_server.torchserve import TorchServe, TorchServeConfig


async def main(archive, work_dir):
    config = TorchServeConfig(work_dir=work_dir, archive=archive, model_name="echo", device="cpu")
    await TorchServe(config).start()
    print("up", flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))

"""A BentoML service that notes what happens to it, for `test_bentoml_contract`."""

import asyncio
import os
import signal
import threading

import bentoml


def note(event: str) -> None:
    with open(os.environ["PROBE_NOTES"], "a") as notes:
        print(event, file=notes)


@bentoml.service(name="probe", http={"host": "127.0.0.2"}, workers=1)
class Probe:
    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check() -> None:
        note("deployment")
        if "PROBE_REFUSES" in os.environ:
            raise SystemExit(3)

    def __init__(self) -> None:
        note(f"init worker={bentoml.server_context.worker_index}")

    @bentoml.on_startup  # type: ignore[untyped-decorator]
    async def begin(self) -> None:
        asyncio.get_running_loop()
        in_main = threading.current_thread() is threading.main_thread()
        owner = getattr(signal.getsignal(signal.SIGTERM), "__module__", None)
        note(f"startup main={in_main} sigterm={owner} parent={os.getppid()}")

    @bentoml.api(route="/slow")  # type: ignore[untyped-decorator]
    async def slow(self) -> str:
        note("asked")
        await asyncio.sleep(1.5)
        note("answered")
        return "done"

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    def end(self) -> None:
        note("shutdown")

import asyncio
import threading

from learner.publishing.announcer import VersionAnnouncer
from protocol.messages import VersionReady, VersionReadyReply
from protocol.sockets import Server
from tests.waiting import until


async def serve(server, heard):
    async for peer, message in server:
        assert isinstance(message, VersionReady)
        heard.append(message.version)
        await server.send(peer, VersionReadyReply())


async def test_the_newest_version_arrives_even_when_the_buffer_comes_late(tmp_path):
    endpoint = f"ipc://{tmp_path}/replay"
    announcer = VersionAnnouncer(endpoint)
    announcer.announce(1)
    announcer.announce(2)  # neither waits for the buffer, which is not there
    await asyncio.sleep(0.2)
    server, heard = Server(endpoint), []
    serving = asyncio.create_task(serve(server, heard))
    await until(lambda: heard and heard[-1] == 2)
    announcer.announce(3)
    await until(lambda: heard[-1] == 3)
    await asyncio.to_thread(announcer.close)
    assert not any(thread.name == "version announcer" for thread in threading.enumerate())
    serving.cancel()
    server.close()

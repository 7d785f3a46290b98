"""A user without root in a sandbox that is made of an image: who it is, and how everything is handed over to it."""

from __future__ import annotations

from msgspec.structs import replace

from protocol.errors import SandboxError
from sandbox.base import Command, ExecResult, SandboxSpec
from sandbox.guest.client import GuestClient
from sandbox.guest.sandbox import GuestSandbox

USER_ID = 1000
USER_ENVIRONMENT = {"HOME": "/home/agent", "USER": "agent", "LOGNAME": "agent"}
USER_IS_NAMED = (
    f"grep -q '^[^:]*:[^:]*:{USER_ID}:' /etc/passwd ||"
    f" echo 'agent:x:{USER_ID}:{USER_ID}::/home/agent:/bin/sh' >> /etc/passwd"
)
_NAMING_S = 120.0


class UserSandbox(GuestSandbox):
    """One that begins as root's, and may become a user's; see `Sandbox.hand_over`."""

    def __init__(self, spec: SandboxSpec, client: GuestClient) -> None:
        super().__init__(spec, client)
        self._is_users = False

    async def run(self, command: Command) -> ExecResult:
        """See `Sandbox.run`."""
        if self._is_users:
            command = replace(command, env={**USER_ENVIRONMENT, **(command.env or {})})
        return await super().run(command)

    async def hand_over(self) -> None:
        """See `Sandbox.hand_over`."""
        if self.spec.user_paths is None or self._is_users:
            return
        named = await self.exec(["sh", "-c", USER_IS_NAMED], timeout=_NAMING_S)
        if named.exit_code:
            raise SandboxError(f"{self.spec.lease}: no user can be added to its image: {named.text}", kind="user")
        try:
            await self.client.hand_over(USER_ID, [self.spec.workdir, USER_ENVIRONMENT["HOME"], *self.spec.user_paths])
        except SandboxError as error:
            raise SandboxError(f"the image does not allow a user without root: {error}", kind="user") from error
        self._is_users = True

"""An evaluation beside the training, from the buffer's lease to the point of the curve: real sockets, a real actor."""

import asyncio
import contextlib
import json

from actors.episodes.sandbox_actor import SandboxActor
from actors.policies.scripted import ScriptedPolicy
from cluster.evaluation import while_training
from console.run_data.held_out import held_out
from learner.replay.service.server import ReplayServer
from protocol.config import Settings
from sandbox.datasets.loading import load_tasks
from sandbox.fake import FakeBackend
from tests.waiting import LONG_S, until


async def test_held_out_tasks_are_attempted_beside_those_that_train(tmp_path, tokenizer):
    settings = Settings.model_validate(
        {
            "num_actors": 8,
            "tasks": {"count": 4, "cache_dir": tmp_path / "cache"},
            "replay": {"batch": 8, "group_size": 4},
            "eval": {"every": 5, "tasks_in_training": 3, "runs_in_training": 2},
            "episode": {"max_turn_tokens": 400},
            "actors": {"trajectory_log_share": 1.0},
        }
    )
    assert settings.held_out is not None
    tasks, others = load_tasks(settings.tasks), load_tasks(settings.held_out)
    server = ReplayServer(
        settings,
        [task.ref for task in tasks],
        f"ipc://{tmp_path}/replay",
        tmp_path,
        held_out=[task.ref for task in others],
    )
    endpoint = await server.start()
    serving = asyncio.create_task(server.run())
    backend = FakeBackend("held-out")
    policy = ScriptedPolicy(tokenizer, lambda episode, history, turn: "```command\nsubmit\n```")
    known = {task.task_id: task for task in [*tasks, *others]}
    actor = SandboxActor(settings, "a", 8, endpoint, policy, backend, known, tokenizer, None, tmp_path)
    acting = asyncio.create_task(actor.run())
    try:
        await until(lambda: any(each.is_over for each in server.evaluations([])), 2 * LONG_S)
        evaluation = server.evaluations([])[0]
        await until(lambda: actor.status()["episodes_held_out"] == 6)  # it has written them down, too
    finally:
        await actor.stop()
        await backend.close()
        await server.stop()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(acting, serving)
    report = while_training.score(evaluation, [task.ref for task in others], 2)
    assert (report.num_attempts, report.num_attempts_asked) == (6, 6)
    while_training.write(tmp_path, evaluation, report)
    assert held_out(tmp_path) == [(0, 0.0)]
    files = (tmp_path / "evaluations" / "version-0" / "trajectories").glob("*.jsonl")
    written = [json.loads(line)["task_id"] for file in files for line in file.read_text().splitlines()]
    assert sorted(written) == sorted(2 * [task.task_id for task in others])
    assert server.status()["held_out_finished"] == 6
    assert server.replay.state.rates.keys() <= {task.task_id for task in tasks}

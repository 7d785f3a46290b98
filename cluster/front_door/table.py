"""Every command of `longhaul`: one entry each, and a function elsewhere that does the work.

A new command is an entry here and a function `main(arguments, program) -> exit status`. `program` (such as
`longhaul tasks build`) is what its parser calls itself: `ArgumentParser(prog=program)`. The function is named as text
and imported when its command is called, so that `longhaul --help` loads nothing else; the tests hold that it exists.
"""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    """One line that teaches."""

    line: str  # as it is typed
    meaning: str


class Command(NamedTuple):
    """One command.

    Args:
        name: the words after `longhaul`; the first of two is a group.
        does: what it is for, in a few words.
        target: `module:function` of what does it.
        examples: shown before its own help; none where its own help begins with examples.
        only_prints: it ends quietly when its reader has read enough (`| head`).
    """

    name: str
    does: str
    target: str
    examples: tuple[Example, ...] = ()
    only_prints: bool = False


GROUPS = {
    "models": "model directories: what can be done with them",
    "agents": "agents from outside, trained as they are",
    "tasks": "task files: make them, check them",
    "cluster": "many hosts: what goes where, and how Ray gets there",
    "metrics": "a running run's series in Prometheus",
}

COMMANDS = (
    Command("run", "train: rejection fine-tuning, RL, or stages of both", "cluster.front_door.launching:run"),
    Command("eval", "score a model or an endpoint on tasks; no learner", "cluster.front_door.launching:evaluate"),
    Command(
        "console",
        "see a run as pages: curves, every recorded episode, what went wrong",
        "console.commands:console",
        (
            Example("longhaul console runs/x", "over or live; its address is printed"),
            Example("longhaul console runs/x --host 0.0.0.0 --port 8080", "for other hosts, behind a token"),
        ),
    ),
    Command(
        "compare",
        "two runs or more: settings that differ, and what they amounted to",
        "console.commands:compare",
        (
            Example("longhaul compare runs/a runs/b", "two tables"),
            Example("longhaul console runs/a runs/b", "their curves, on the page Compare"),
        ),
        only_prints=True,
    ),
    Command(
        "top",
        "the screen of a running run, from another terminal",
        "cluster.reporting.top:main",
        (Example("longhaul top runs/x", "progress, the loop with its rates, what holds it up"),),
    ),
    Command(
        "report",
        "write what a run amounted to as one page",
        "console.commands:report",
        (Example("longhaul report runs/x", "runs/x/report.html, which needs nothing else"),),
    ),
    Command(
        "metrics up",
        "start Prometheus over a running run, on loopback, until Ctrl-C",
        "cluster.reporting.prometheus:main",
        (Example("longhaul metrics up runs/x", "http://127.0.0.1:9090, where Ray's dashboard looks for it"),),
    ),
    Command(
        "grafana",
        "print the console's plots as a dashboard for Grafana's import",
        "cluster.reporting.grafana:main",
        (Example("longhaul grafana --out longhaul.json", "over the series that `longhaul metrics up` collects"),),
        only_prints=True,
    ),
    Command(
        "traces",
        "print recorded episodes as OpenTelemetry traces",
        "console.episodes.traces:main",
        (Example("longhaul traces runs/x > traces.jsonl", "OTLP JSON, one episode a line, for any trace viewer"),),
        only_prints=True,
    ),
    Command(
        "track",
        "send a run's metrics to Weights & Biases or MLflow, now or what is missing",
        "cluster.reporting.trackers.command:main",
        (
            Example("longhaul track runs/x", "what the trackers of its settings have not got yet"),
            Example("longhaul track runs/x --mlflow mlruns", "a run that is over, into a directory"),
        ),
    ),
    Command(
        "replay",
        "train one step again and compare it with what was logged",
        "learner.rerun.command:main",
        (
            Example("longhaul replay runs/x --step 12", "loss, gradient norm and diagnostics, to the last digit"),
            Example(
                "longhaul replay runs/x --step 12 --what-if learner.loss.eps_high=0.2", "and how it might have been"
            ),
        ),
    ),
    Command(
        "tasks build",
        "make validated tasks of released packages",
        "sandbox.curation.commands:build",
        (
            Example("longhaul tasks build toolz==1.0.0 --count 4 --out toolz.jsonl", "four tasks of one package"),
            Example("longhaul tasks build --recipes configs/packages.toml --out tasks.jsonl", "a list of packages"),
            Example("longhaul eval --eval.tasks toolz.jsonl", "then score a model on them"),
        ),
    ),
    Command(
        "tasks inspect",
        "what each record of a task file becomes: image, command, parser, tests, refusals",
        "sandbox.datasets.inspect:main",
        (
            Example("longhaul tasks inspect tasks.jsonl", "every record, nothing is run"),
            Example("longhaul tasks inspect tasks.jsonl --task django__django-11099 --json", "one task, for a program"),
        ),
        only_prints=True,
    ),
    Command(
        "tasks try",
        "a shell script plays the agent on one task: its change, the verdict and the log",
        "sandbox.curation.rehearse:main",
        (
            Example(
                "longhaul tasks try tasks.jsonl --task django__django-11099 --script agent.sh", "in a real sandbox"
            ),
            Example("longhaul tasks try micro", "judge the gold patch of the first task"),
        ),
    ),
    Command(
        "tasks validate",
        "keep the tasks whose untouched tree scores 0 and gold patch 1",
        "sandbox.curation.commands:check",
        (
            Example("longhaul tasks validate tasks.jsonl --runs 3 --out kept.jsonl", "a file, three runs of each task"),
            Example(
                "longhaul tasks validate nebius/SWE-rebench --paper --out kept.jsonl", "a dataset, as in the paper"
            ),
        ),
    ),
    Command(
        "agents try",
        "run one episode of an agent from outside and show every request",
        "cluster.front_door.agents_try:main",
        (
            Example("longhaul agents try mini-swe-agent --model.path DIR --model.max-context 32768", "on a micro task"),
            Example("longhaul agents try command --agent.command 'my-agent' --answers texts.json", "without a model"),
        ),
    ),
    Command(
        "show",
        "read recorded episodes",
        "actors.episodes.show:main",
        (
            Example("longhaul show runs/x", "every recorded episode in one line each"),
            Example("longhaul show runs/x g17/3", "one of them as a conversation"),
        ),
        only_prints=True,
    ),
    Command(
        "review",
        "rewarded patches that people should look at, and why",
        "actors.episodes.review:main",
        (
            Example("longhaul review runs/x", "every such patch with its diff"),
            Example("longhaul review runs/x --no-diffs", "in one line each"),
        ),
        only_prints=True,
    ),
    Command(
        "models check",
        "what a model directory holds, what it needs, what will be exact, what is refused",
        "cluster.models_check:main",
        (
            Example("longhaul models check DIR", "its verdict, in seconds and without loading it"),
            Example("longhaul models check DIR --max-context 32768", "with longer episodes"),
        ),
        only_prints=True,
    ),
    Command(
        "cluster plan",
        "which process of a run would go to which host, or why it fits nowhere",
        "cluster.hosts.commands:plan_command",
        (
            Example("longhaul cluster plan --hosts 1:cpus=8,memory=30", "the default run on one machine"),
            Example(
                "longhaul cluster plan --config configs/paper-stage2.toml --model configs/models/qwen2.5-72b "
                "--hosts 16:cpus=192,gpus=8,memory=2000",
                "the 72B recipe on 16 hosts of 8 GPUs",
            ),
        ),
        only_prints=True,
    ),
    Command(
        "cluster up",
        "start Ray on hosts, with a token and TLS that no stranger has",
        "cluster.security.up:up",
        (
            Example("longhaul cluster up 10.0.0.1 10.0.0.2", "writes a script a host, and prints how to run them"),
            Example("longhaul cluster up 10.0.0.1 10.0.0.2 --ssh", "runs them"),
            Example("longhaul cluster up 10.0.0.9 --join 10.0.0.1 --ssh", "one more host for a running cluster"),
        ),
    ),
    Command(
        "cluster credentials",
        "make a token and certificates for Ray where something else starts it (Slurm, Kubernetes)",
        "cluster.security.up:credentials",
        (Example("longhaul cluster credentials DIR 10.0.0.1 10.0.0.2", "`eval` that before `ray start`, and a run"),),
        only_prints=True,
    ),
    Command(
        "cluster down",
        "stop Ray on hosts",
        "cluster.security.up:down",
        (Example("longhaul cluster down 10.0.0.1 10.0.0.2 --ssh", "with all that it runs there"),),
    ),
    Command(
        "drain",
        "have a running run leave a host: its episodes are finished, its generations go on elsewhere",
        "cluster.hosts.drains:command",
        (Example("longhaul drain host-7 runs/x", "before that host is taken away"),),
    ),
    Command(
        "plan",
        "what fits into the memory of which GPUs, and how long a step takes",
        "cluster.plan:main",
        (
            Example(
                "longhaul plan --config configs/paper-stage2.toml --model configs/models/qwen2.5-72b",
                "the 72B recipe, from config.json alone",
            ),
            Example("longhaul plan --model DIR --gpus 8", "how one host's GPUs are split, with what suits the model"),
            Example("longhaul plan --config my.toml --gpu-gib 74 --gpu-tflops 989", "the same on H100s"),
        ),
        only_prints=True,
    ),
)

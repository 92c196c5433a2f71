"""Every verb of the command line, run for real on a tiny model and a little text."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from saelab import SAE, ActivationStore, EvaluateConfig, HarvestConfig, TrainConfig, tokens
from saelab.cli import VERBS, main
from saelab.cli.flags import Parser, add_flags, field_docs, from_flags, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar, Working
from saelab.errors import ConfigError, Interrupted
from saelab.files import read_tensors
from saelab.quickstart import QuickstartConfig
from saelab.recipes import Recipe

HOOK = "blocks.1.hook_resid_post"
CONFIGS = {
    "harvest": HarvestConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "quickstart": QuickstartConfig,
}


def lines_of(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """Run a command line that should work; its lines on standard output."""
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out.splitlines()


def complaint_of(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command line that should be refused; its one line on standard error."""
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("saelab: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="session")
def harvested(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_text_file: Path
) -> Path:
    """A store with held-out text, made by `saelab harvest`."""
    folder = tmp_path_factory.mktemp("cli") / "acts"
    words = ["harvest", "--model", tiny_model_folder, "--text", tiny_text_file, "--hook", HOOK]
    words += ["--length", 32, "--out", folder, "--tokens-per-shard", 4096, "--dtype", "float32"]
    assert main([str(word) for word in words]) == 0
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, harvested: Path) -> Path:
    """A finished run, made by `saelab train`."""
    folder = tmp_path_factory.mktemp("cli") / "topk"
    words = ["train", harvested, "--out", folder, "--d-sae", 64, "--k", 4]
    words += ["--tokens", 8192, "--batch-size", 512, "--log-every-tokens", 1024]
    assert main([str(word) for word in words]) == 0
    return folder


def test_harvest_stores_activations_and_keeps_documents_for_evaluation(harvested: Path) -> None:
    store = ActivationStore.open(harvested)
    held_out = tokens.Tokens.load(harvested / "tokens" / "held_out")
    assert store.hooks == [HOOK]
    assert store.d_in == 32
    assert 8_000 < store.n_tokens < 20_000
    trained_on = store.tokens
    assert trained_on is not None
    documents = {*trained_on.document.unique().tolist()} - {-1}
    assert documents
    assert not documents & {*held_out.document.unique().tolist()}
    store.verify()


def test_harvest_again_changes_nothing(
    harvested: Path, tiny_model_folder: Path, tiny_text_file: Path
) -> None:
    before = (harvested / "manifest.json").read_bytes()
    words = ["harvest", "--model", tiny_model_folder, "--text", tiny_text_file, "--hook", HOOK]
    words += ["--length", 32, "--out", harvested, "--tokens-per-shard", 4096, "--dtype", "float32"]
    assert main([str(word) for word in words]) == 0
    assert (harvested / "manifest.json").read_bytes() == before


def test_train_leaves_a_run_that_learned_something(trained: Path, harvested: Path) -> None:
    sae = SAE.load(trained / "sae")
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    x = ActivationStore.open(harvested).sample(2000)
    fvu = (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert (sae.d_in, sae.d_sae, sae.hook) == (32, 64, HOOK)
    assert rows[-1]["tokens"] == 8192
    assert fvu < 0.9 * rows[0]["fvu"]


def test_evaluate_needs_only_the_run_folder(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_of(capsys, "evaluate", trained, "--max-loss-tokens", 256)
    report = json.loads((trained / "evaluation.json").read_text())
    held_out = report["data"]["tokens"]
    assert (trained / "evaluation.html").stat().st_size > 10_000
    assert held_out["corpus"]["split"]["part"] == "held out"
    assert any(line.split()[:2] == ["fvu", f"{report['summary']['fvu']:.4f}"] for line in lines)
    assert any("nats per token with the reconstruction in place" in line for line in lines)


def test_evaluate_takes_a_dictionary_a_model_and_a_text(
    trained: Path,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["evaluate", trained / "sae", "--model", tiny_model_folder, "--text", tiny_text_file]
    lines_of(capsys, *words, "--length", 32, "--max-loss-tokens", 0, "--out", tmp_path)
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["losses"] is None
    assert 0 < report["summary"]["fvu"] < 1


def test_export_writes_the_two_files_that_saelens_reads(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines_of(capsys, "export", trained, "--out", tmp_path / "saelens")
    assert {path.name for path in (tmp_path / "saelens").iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
    }
    config = json.loads((tmp_path / "saelens" / "cfg.json").read_text())
    weights = read_tensors(tmp_path / "saelens" / "sae_weights.safetensors")
    sae = SAE.load(trained / "sae")
    x = torch.randn(5, 32)
    pre_acts = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    values, indices = pre_acts.topk(config["k"])
    latents = torch.zeros_like(pre_acts).scatter(1, indices, values.relu())
    recons = latents @ weights["W_dec"] + weights["b_dec"]
    torch.testing.assert_close(recons, sae(x), rtol=1e-4, atol=1e-4)


def test_export_names_the_formats_there_are(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = complaint_of(capsys, "export", trained, "--format", "onnx", "--out", tmp_path)
    assert "no export format 'onnx'. There is circuit-tracer, " in said


def test_plan_agrees_with_the_disk_that_was_used(
    harvested: Path,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["plan", "--model", tiny_model_folder, "--text", tiny_text_file, "--hook", HOOK]
    words += ["--length", 32, "--tokens-per-shard", 4096, "--dtype", "float32"]
    words += ["--d-sae", 64, "--k", 4, "--tokens", 8192, "--batch-size", 512]
    lines = lines_of(capsys, *words)
    disk = next(line for line in lines if line.startswith("Disk:"))
    used = sum(p.stat().st_size for p in harvested.rglob("*") if p.is_file())
    used -= sum(p.stat().st_size for p in (harvested / "tokens" / "held_out").iterdir())
    planned, unit = disk.split("activations ")[1].split(",")[0].split()
    assert unit == "MiB"
    assert 0.75 < float(planned) * 2**20 / used < 1.25
    assert any(line.startswith("Memory at most: harvest") for line in lines)
    assert any(line.startswith("Time:") for line in lines)


def test_quickstart_does_the_main_job_and_says_what_it_found(
    tmp_path: Path,
    tiny_model_folder: Path,
    tiny_text_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["quickstart", "--out", tmp_path / "q", "--model", tiny_model_folder]
    words += ["--text", tiny_text_file, "--hook", HOOK, "--length", 32, "--d-sae", 64, "--k", 4]
    words += ["--harvest-tokens", 8000, "--held-out-tokens", 2000, "--loss-tokens", 256]
    words += ["--train-tokens", 8192, "--batch-size", 512]
    lines = lines_of(capsys, *words)
    said = "\n".join(lines)
    for part in ("activations/manifest.json", "topk/sae/cfg.json", "topk/evaluation.html"):
        assert (tmp_path / "q" / part).exists(), part
    assert (tmp_path / "q" / "topk" / "first_look.html").stat().st_size > 10_000
    assert said.count("\nlatent ") == 5
    assert "of the held-out 13-grams occur in the training text" in said
    # resumed: nothing is done twice, and the numbers are the same
    run_before = (tmp_path / "q" / "topk" / "metrics.jsonl").read_text()
    again = lines_of(capsys, *words)
    assert (tmp_path / "q" / "topk" / "metrics.jsonl").read_text() == run_before
    assert again[again.index("On held-out text:") :] == lines[lines.index("On held-out text:") :]
    # and the commands it recommends work
    assert main(["doctor", str(tmp_path / "q")]) == 0
    evaluate = ["evaluate", str(tmp_path / "q" / "topk"), "--max-loss-tokens", "256"]
    assert main(evaluate) == 0


def test_quickstart_refuses_held_out_text_that_was_trained_on(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "the same letter was sent to everybody in town, word for word, twice a year. "
    lines = [json.dumps({"text": text * 3})] * 40
    (tmp_path / "copies.jsonl").write_text("\n".join(lines))
    words = ["quickstart", "--out", tmp_path / "q", "--model", tiny_model_folder]
    words += ["--text", tmp_path / "copies.jsonl", "--hook", HOOK, "--length", 32]
    said = complaint_of(capsys, *words, "--harvest-tokens", 4000, "--held-out-tokens", 1000)
    assert "100.0% of the held-out text's 13-grams" in said


def test_doctor_finds_a_flipped_bit_and_names_the_file(
    trained: Path, harvested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    for name, source in (("run", trained), ("store", harvested)):
        shutil.copytree(source, tmp_path / name)
    assert main(["doctor", str(tmp_path)]) == 0
    capsys.readouterr()
    bad = [
        tmp_path / "run" / "sae" / "sae_weights.safetensors",
        next((tmp_path / "run" / "checkpoints").glob("*/state.safetensors")),
        next((tmp_path / "store" / HOOK).glob("*.safetensors")),
    ]
    for path in bad:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert main(["doctor", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    broken = [line for line in said.splitlines() if line.startswith("broken")]
    assert len(broken) == 3
    for path in bad:
        assert sum(str(path) in line or str(path.parent) in line for line in broken) == 1


def test_doctor_looks_at_the_installation(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    said = capsys.readouterr().out
    for subject in ("python: ", "cpu: ", "bfloat16: ", "default model: ", "default text: "):
        assert subject in said


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert f"saelab {verb}" in said.split("example:")[1]


@pytest.mark.parametrize("verb", CONFIGS)
def test_every_field_of_a_config_is_a_flag_with_the_fields_own_words(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    docs = field_docs(CONFIGS[verb])
    recipe = {field.name for field in dataclasses.fields(Recipe)} if verb == "train" else set()
    for field in dataclasses.fields(CONFIGS[verb]):
        if field.name in recipe:
            continue  # a recipe has this one too, and says it in its own words
        assert f"--{field.name.replace('_', '-')}" in said
        first_words = " ".join(docs[field.name].split()[:4])
        assert first_words in said, field.name


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["harvst"], "There is no verb 'harvst'. Did you mean harvest?"),
        (["train", "x", "--out", "y", "--d-saee", "9"], "no flag --d-saee. Did you mean --d-sae"),
        (["train", "x", "--outt", "y"], "no flag --outt. Did you mean --out"),
        (["train", "x"], "the following arguments are required: --out"),
        (["train", "x", "--out", "y", "--tokens", "many"], "--tokens: invalid INT value: 'many'"),
        (["train", "x", "--out", "y", "--center", "top"], "--center: invalid choice: 'top'"),
        (["train", "x", "--out", "y", "--lr", "-1"], "TrainConfig(lr=-1.0) must be positive"),
        (["train", "nowhere", "--out", "y"], "nowhere"),
        (["evaluate", "nowhere"], "nowhere"),
        (["doctor", "nowhere"], "There is no folder nowhere"),
        (["harvest", "--model", "smollm3", "--hook", "h", "--out", "o"], "Did you mean"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_status_2(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert part in complaint_of(capsys, *words)
    finally:
        os.chdir(before)


def test_a_misspelt_corpus_is_refused(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["harvest", "--model", tiny_model_folder, "--text", "sotou", "--hook", HOOK]
    assert "no corpus has this name" in complaint_of(capsys, *words, "--out", tmp_path / "o")


def test_a_bug_keeps_its_traceback() -> None:
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(work)


@pytest.mark.parametrize(
    "error", [Interrupted("SIGINT: run the same command again."), KeyboardInterrupt()]
)
def test_an_interruption_is_one_line_and_exit_status_130(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise error

    assert run(work) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_saelab_runs_as_a_process() -> None:
    program = "import sys; from saelab.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "trian"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "saelab: There is no verb 'trian'. Did you mean train? See: saelab --help\n"
    )
    assert done.stdout == ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Every type of field there is."""

    count: int
    """How many; costs 5% each."""
    rate: float | None = None
    """How fast."""
    kind: Literal["a", "b"] = "a"
    """Which."""
    either: int | Literal["auto"] = "auto"
    """A number, or not."""
    names: tuple[str, ...] = ()
    """Any number of words,
    on two lines."""
    place: Path = Path("here")
    """Where."""
    loud: bool = True
    """Whether."""


def sample_of(*words: str) -> Sample:
    parser = Parser(prog="sample")
    add_flags(parser, Sample)
    return from_flags(Sample, parse(parser, words))


def test_flags_read_every_type_of_field() -> None:
    everything = sample_of(
        *("--count", "2e6", "--rate", "0.5", "--kind", "b", "--either", "7"),
        *("--names", "x", "--names", "y", "--place", "there", "--no-loud"),
    )
    assert everything == Sample(
        count=2_000_000,
        rate=0.5,
        kind="b",
        either=7,
        names=("x", "y"),
        place=Path("there"),
        loud=False,
    )
    assert sample_of("--count=1_000", "--rate", "none", "--either", "auto") == Sample(count=1000)


@pytest.mark.parametrize(
    "words",
    [["--count", "1.5"], ["--count", "1", "--either", "x"], ["--count", "1", "--kind", "c"]],
)
def test_flags_refuse_a_value_of_another_type(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="invalid"):
        sample_of(*words)


def test_flags_without_a_default_are_required() -> None:
    with pytest.raises(ConfigError, match="required: --count"):
        sample_of()


def test_help_shows_the_words_under_a_field_and_its_default() -> None:
    parser = Parser(prog="sample")
    add_flags(parser, Sample)
    said = " ".join(parser.format_help().split())
    assert "How many; costs 5% each. --rate" in said
    assert "Any number of words, on two lines. (default: none)" in said
    assert "--loud, --no-loud Whether. (default: true)" in said


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_once_work_takes_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("saelab.cli.progress.time.monotonic", lambda: now[0])
    screen = Terminal()
    with ProgressBar("Training", stream=screen) as bar:
        bar(10, 100)
        assert screen.getvalue() == ""
        now[0] = 1.5
        bar(60, 100, "fvu 0.2")
    assert "Training" in screen.getvalue()
    assert "60.0/100" in screen.getvalue()
    assert "fvu 0.2" in screen.getvalue()


def test_a_log_file_gets_a_line_now_and_then_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("saelab.cli.progress.time.monotonic", lambda: now[0])
    log = io.StringIO()
    with ProgressBar("Training", stream=log) as bar:
        bar(1000, 2000)  # a resumed run: the first thousand took no time
        for second, done in ((5, 1100), (20, 1200), (25, 1300)):
            now[0] = second
            bar(done, 2000, "fvu 0.2")
    # 200 tokens in 20 s, 800 left
    assert log.getvalue() == "Training: 60% of 2,000 tokens, 80 s left (fvu 0.2)\n"


def test_a_clock_runs_until_the_bar_takes_over() -> None:
    screen = Terminal()
    with Working("Loading", stream=screen) as clock:
        with ProgressBar("Loading", stream=screen, replaces=clock) as bar:
            bar(1, 2)
        assert not clock._thread.is_alive()

"""Models by their name on the Hugging Face hub, against a small server on this machine."""

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from limner import hub
from limner.cli import main
from limner.errors import LimnerError
from limner.folders import find_model, find_part
from limner.weight_names import choose_weights

MAIN, OLD = "a" * 40, "b" * 40
SAFE, PICKLE, CLIP = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "model.safetensors"
SHARDS = [f"model-{k:05d}-of-00002.safetensors" for k in (1, 2)]
INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0", "requires_safety_checker": True,
    "class_names": ["cat", "dog"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"], "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"], "text_encoder_2": [None, None],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
}  # fmt: skip
NEEDED = {
    "model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "tokenizer/spiece.model", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    f"unet/{SAFE}", "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors.index.json",
    *(f"text_encoder/{shard}" for shard in SHARDS),
}  # fmt: skip
NOT_NEEDED = {
    "README.md", "v1-5-pruned.safetensors", f"unet/{PICKLE}", "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    f"vae/{PICKLE}", "vae/model.onnx", "text_encoder/flax_model.msgpack", "text_encoder/tf_model.h5",
    f"safety_checker/{CLIP}", "safety_checker/config.json", "feature_extractor/preprocessor_config.json",
    f"image_encoder/{CLIP}", "other/config.json", "unet/deeper/config.json",
}  # fmt: skip


def full_repository() -> dict[str, bytes]:
    """Files as in a repository of Stable Diffusion; each holds its own name."""
    return {name: name.encode() for name in NEEDED | NOT_NEEDED} | {"model_index.json": json.dumps(INDEX).encode()}


class Hub(ThreadingHTTPServer):
    """Serves `files`, {commit: {name: content}} of owner/tiny, and keeps the `asked` (method, path)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {MAIN: full_repository()}
        self.revisions = {"main": MAIN, "v1": OLD, "refs/pr/1": OLD, MAIN: MAIN, OLD: OLD}
        self.asked: list[tuple[str, str]] = []
        self.broken: dict[str, tuple[int, dict[str, str]]] = {}  # the end of "METHOD path": status and headers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        return {path.partition("/resolve/")[2].partition("/")[2] for method, path in self.asked
                if method == "GET" and "/resolve/" in path}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """The three addresses of the hub that downloads ask for."""

    server: Hub

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        path = unquote(self.path)
        self.server.asked.append((self.command, path))
        for end, (status, headers) in self.server.broken.items():
            if f"{self.command} {path}".endswith(end):
                return self.answer(status, headers)
        if "owner/tiny" not in path:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/"):
            commit = self.server.revisions.get(path.partition("/revision/")[2] or "main")
            listed = [{"rfilename": name} for name in self.server.files.get(commit or "", ())]
            content = json.dumps({"id": "owner/tiny", "sha": commit, "siblings": listed}).encode()
            return self.answer(200, {}, content) if commit else self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        place = path.removeprefix("/owner/tiny/resolve/")
        revision = next(each for each in self.server.revisions if place.startswith(f"{each}/"))
        commit = self.server.revisions[revision]
        content = self.server.files[commit][place.removeprefix(f"{revision}/")]
        self.answer(200, {"X-Repo-Commit": commit, "ETag": f'"{hash((commit, place))}"'}, content)

    do_GET = do_HEAD

    def answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def point_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Have huggingface_hub take `url` for the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub of this test, an empty cache, and an empty current folder."""
    from huggingface_hub import close_session, constants

    running = Hub()
    thread = Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    point_at(monkeypatch, running.url)
    for name, value in {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": False, "HF_HUB_ETAG_TIMEOUT": 0.3,
                        "HF_TOKEN_PATH": str(tmp_path / "token")}.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    yield running
    running.shutdown()
    running.server_close()
    close_session()
    thread.join()


def cache() -> str:
    """The folder of the hub's cache."""
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `limner ARGUMENTS` prints as it exits with status 2: one line."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and err.count("\n") == 1 and err.startswith("limner: ")
    return err


def sharded(stem: str, extension: str, before: str = "", after: str = "", count: int = 2) -> list[str]:
    return [f"{stem}{before}-{k:05d}-of-{count:05d}{after}.{extension}" for k in range(1, count + 1)]


@pytest.mark.parametrize(
    "chosen, others",
    [
        ([SAFE], ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors", PICKLE]),
        ([CLIP], ["model.safetensors.index.json", *SHARDS, "config.json", "flax_model.msgpack"]),
        (["model.safetensors.index.json", *SHARDS], ["model.fp16.safetensors", "pytorch_model.bin"]),
        (["model.fp16.safetensors"], ["model.bf16.safetensors", *SHARDS]),
        (["model.safetensors.index.fp16.json", *sharded("model", "safetensors", before=".fp16")],
         ["model.bf16.safetensors", "model.safetensors.index.json"]),
        (["diffusion_pytorch_model.safetensors.index.fp16.json",
          *sharded("diffusion_pytorch_model", "safetensors", after=".fp16", count=3)], ["config.json"]),
        (["diffusion_pytorch_model.safetensors.fp16.index.json",
          *sharded("diffusion_pytorch_model", "safetensors", after=".fp16")], sharded("model", "safetensors")),
        (["model.bf16.safetensors"], ["model.fp16.safetensors.part", "pytorch_model.fp16.bin"]),
    ],
)  # fmt: skip
def test_the_weights_are_the_best_safetensors(chosen: list[str], others: list[str]) -> None:
    assert choose_weights([*others, *reversed(chosen)]) == chosen
    assert choose_weights([*others, *reversed(chosen)], allow_pickle=True) == chosen


@pytest.mark.parametrize(
    "chosen, others",
    [
        (["pytorch_model.bin"], ["pytorch_model.fp16.bin", "model.ckpt"]),
        (["pytorch_model.bin.index.json", *sharded("pytorch_model", "bin")], ["tf_model.h5", "model.onnx"]),
        ([PICKLE], ["diffusion_pytorch_model.non_ema.bin"]),
        (["model.ckpt"], ["config.json"]),
    ],
)
def test_pickles_are_weights_only_if_allowed(chosen: list[str], others: list[str]) -> None:
    assert choose_weights([*others, *chosen], allow_pickle=True) == chosen
    with pytest.raises(LimnerError, match=rf"pickles \({chosen[0]}\).*: refused without allow_pickle=True .*--allow-"):
        choose_weights([*others, *chosen])


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "no weights in an empty folder"),
        (["tf_model.h5", "config.json"], "no weights in config.json, tf_model.h5"),
        (["model.safetensors.index.json", SHARDS[0]], "no complete set of shards with their index in model-00001"),
        (SHARDS, "no complete set of shards with their index in model-00001"),
    ],
)
def test_a_folder_without_weights_is_an_error_that_lists_it(names: list[str], message: str) -> None:
    with pytest.raises(LimnerError, match=message):
        choose_weights(names, allow_pickle=True)


def test_what_limner_opens_is_downloaded_and_nothing_else(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    main(["download", "owner/tiny"])
    assert server.fetched() == NEEDED
    folder = Path(cache(), "models--owner--tiny/snapshots", MAIN)
    size = sum(len(server.files[MAIN][name]) for name in NEEDED) / 1e6
    assert capsys.readouterr().out == f"{folder}  {size:.2f} MB\n"
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == NEEDED
    assert (folder / "unet" / SAFE).read_text() == f"unet/{SAFE}"


def test_a_size_in_gigabytes(server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("weights").open("wb") as file:
        file.truncate(1_234_000_000)
    monkeypatch.setattr(hub, "download", lambda *_: Path.cwd())
    main(["download", "owner/tiny"])
    assert capsys.readouterr().out == f"{Path.cwd()}  1.23 GB\n"


def test_pickles_are_refused_before_any_weights_are_fetched(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    server.files[MAIN] = {n: c for n, c in full_repository().items() if not n.startswith("vae/diff")}
    server.files[MAIN][f"vae/{PICKLE}"] = b"pickle"
    err = refused(capsys, "download", "owner/tiny")
    assert err.startswith(f"limner: vae: the weights are pickles ({PICKLE})") and "--allow-pickle" in err
    assert server.fetched() == {"model_index.json"}
    err = refused(capsys, "generate", "a", "-m", "owner/tiny")
    assert "limner download owner/tiny, from the Hugging Face hub, fails: vae: the weights are pickles" in err
    main(["download", "owner/tiny", "--allow-pickle"])
    assert f"vae/{PICKLE}" in server.fetched() and f"unet/{PICKLE}" not in server.fetched()
    server.asked.clear()
    assert (find_model("owner/tiny") / "vae" / PICKLE).is_file() and server.asked == []


@pytest.mark.parametrize(
    "arguments",
    [["owner/tiny@v1"], ["owner/tiny", "--revision", "v1"], ["owner/tiny@refs/pr/1"], [f"owner/tiny@{OLD}"]],
)
def test_a_revision_is_resolved_to_its_commit(
    server: Hub, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    server.files[OLD] = full_repository() | {f"unet/{SAFE}": b"old"}
    main(["download", *arguments])
    folder = Path(capsys.readouterr().out.split("  ")[0])
    assert folder.name == OLD and (folder / "unet" / SAFE).read_text() == "old"
    server.asked.clear()
    assert find_model(arguments[0] if "@" in arguments[0] else "owner/tiny@v1") == folder and server.asked == []
    assert find_model("owner/tiny").name == MAIN


def test_the_second_use_makes_no_request_and_works_offline(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    folder = find_model("owner/tiny")
    assert server.fetched() == NEEDED
    server.asked.clear()
    assert find_model("owner/tiny") == find_model(f"owner/tiny@{MAIN}") == folder
    assert find_part("owner/tiny", "vae") == folder and find_part("owner/tiny", "nothing") is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_model("owner/tiny") == folder
    assert server.asked == []


def test_download_follows_a_branch_that_moved(server: Hub) -> None:
    assert find_model("owner/tiny").name == MAIN
    server.files[OLD] = full_repository()
    server.revisions["main"] = OLD
    assert find_model("owner/tiny").name == MAIN
    assert hub.download("owner/tiny").name == OLD == find_model("owner/tiny").name


@pytest.mark.parametrize("file", ["tokenizer/merges.txt", f"unet/{SAFE}", f"text_encoder/{SHARDS[1]}"])
def test_an_interrupted_download_is_finished_by_the_next_use(server: Hub, file: str) -> None:
    server.broken = {f"GET /owner/tiny/resolve/{MAIN}/{file}": (500, {})}
    with pytest.raises(LimnerError, match=rf"fails: {server.url} answered 500 for owner/tiny; try again later"):
        find_model("owner/tiny")
    before = server.fetched() - {file}
    server.broken, server.asked = {}, []
    assert find_part("owner/tiny", "tokenizer") is not None
    assert server.fetched() == NEEDED - before


def test_a_local_folder_wins(server: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "owner/tiny"
    (folder / "vae").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    assert find_model("owner/tiny") == find_part("owner/tiny", "vae") == Path("owner/tiny")
    assert find_part("owner/tiny", "text_encoder") is None
    assert server.asked == []


@pytest.mark.parametrize(
    "text, expected",
    [
        ("owner/name", True), ("o/n", True), ("stabilityai/sd-turbo", True), ("CompVis/stable-diffusion-v1-4", True),
        ("owner/name@v1.0", True), ("owner/name@refs/pr/1", True), ("o_1.b/n", True), ("owner/" + "n" * 96, True),
        ("owner", False), ("a/b/c", False), ("./a/b", False), ("../b", False), ("/a/b", False), ("~/b", False),
        ("a/.b", False), ("a/", False), ("a/b c", False), ("a/b@", False), ("a/b@../c", False), ("a/b@/c", False),
        ("a--b/c", False), ("a/b.git", False), ("a/b-", False), ("-a/b", False), ("ä/b", False), ("a/b\n", False),
        ("owner/" + "n" * 97, False), ("runs/world-text", False), ("", False), ("a/b@v1@v2", False),
    ],
)  # fmt: skip
def test_names_of_repositories(text: str, expected: bool) -> None:
    assert hub.is_name(text) == expected
    if expected:
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(text.partition("@")[0])


def test_a_path_that_is_no_name_makes_no_request(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("runs/world", "./owner/tiny", "nowhere", "a/b/c"):
        assert refused(capsys, "generate", "a", "-m", path).startswith(
            f"limner: no model at {Path(path)}: give a model"
        )
        assert find_part(path, "vae") is None
    assert server.asked == []


def test_every_way_to_name_a_model_takes_a_name_on_the_hub(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    from limner.train.recipe import TextRecipe
    from limner.train.setup import make_text_encoder, open_autoencoder

    server.files[MAIN] = {"README.md": b""}
    message = "owner/tiny is not a model in diffusers' layout: it has no model_index.json"
    for arguments in (["generate", "a"], ["evaluate", "grade"], ["inspect", "tokens", "a"]):
        assert message in refused(capsys, *arguments, "--model", "owner/tiny")
    assert message in refused(capsys, "inspect", "model", "owner/tiny")
    with pytest.raises(LimnerError, match=message):
        open_autoencoder("owner/tiny")
    with pytest.raises(LimnerError, match=message):
        make_text_encoder(TextRecipe(pretrained="owner/tiny"), [])


@pytest.mark.parametrize(
    "name, broken, message",
    [
        ("nobody/tiny", {}, "no repository nobody/tiny, or it is private: check the name, or log in with `hf auth"),
        ("owner/tiny@v9", {}, "owner/tiny has no revision v9"),
        ("owner/tiny", {"model_index.json": (401, {"X-Error-Code": "GatedRepo"})}, "owner/tiny is gated: accept its l"),
        ("owner/tiny", {"model_index.json": (403, {})}, "no access to owner/tiny (403): accept its licence at http"),
        ("owner/tiny", {"models/owner/tiny": (401, {"X-Error-Code": "RepoNotFound"})}, "no repository owner/tiny, or"),
        ("owner/tiny", {"models/owner/tiny": (403, {})}, "no access to owner/tiny (403): accept its licence at http"),
        ("owner/tiny", {"models/owner/tiny": (503, {})}, "answered 503 for owner/tiny; try again later"),
        ("owner/tiny", {"models/owner/tiny": (200, {})}, "does not answer as the Hugging Face hub does: "),
        ("tiny", {}, "'tiny' is no name of a model on the hub; expected owner/name or owner/name@revision"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_one_message(
    server: Hub, name: str, broken: dict, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.broken = broken
    err = refused(capsys, "download", name)
    assert message in err and "there is no folder" not in err
    if "/" in name:
        failed = (
            f"limner: there is no folder {name} here, and limner download {name}, from the Hugging Face hub, fails: "
        )
        assert refused(capsys, "generate", "a", "-m", name) == err.replace("limner: ", failed, 1)


def test_a_part_without_weights_is_named(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    server.files[MAIN] = {n: c for n, c in full_repository().items() if n != f"text_encoder/{SHARDS[1]}"}
    assert "text_encoder: no complete set of shards" in refused(capsys, "download", "owner/tiny", "--allow-pickle")
    assert server.fetched() == {"model_index.json"}


def test_two_revisions_are_one_too_many(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert "names a revision already" in refused(capsys, "download", "owner/tiny@v1", "--revision", "v2")


@pytest.mark.parametrize("listening", [False, True])
def test_a_hub_out_of_reach_is_said_soon(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], listening: bool
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # refuses connections, or accepts them and never answers
        if listening:
            taken.listen()
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        point_at(monkeypatch, url)
        reason = "timed out" if listening else "Connection refused"
        err = refused(capsys, "download", "owner/tiny")
        assert f"no connection to {url} (" in err and f"{reason}): check the network" in err


def test_offline_is_said(server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert f"owner/tiny is not in the cache {cache()}, and HF_HUB_OFFLINE" in refused(
        capsys, "generate", "a", "-m", "owner/tiny"
    )
    assert server.asked == []


def test_a_full_disk_is_said_before_the_download(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import file_download

    monkeypatch.setattr(file_download.shutil, "disk_usage", lambda _: SimpleNamespace(free=3))
    err = refused(capsys, "download", "owner/tiny")
    assert "Not enough free disk space" in err and "set HF_HOME to a folder on a larger disk" in err
    assert server.fetched() == set()


def test_a_disk_that_fills_up_is_said(
    server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import file_download

    def full(*_, **__) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    assert refused(capsys, "download", "owner/tiny") == (
        f"limner: cannot download owner/tiny to {cache()}: No space left on device\n"
    )


def test_a_program_error_is_not_explained_away(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "needed", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hub.download("owner/tiny")


def test_a_model_of_the_hub_paints_as_its_folder_does(server: Hub, tmp_path: Path, one_thread: None) -> None:
    from helpers import tiny_pipeline

    folder = tmp_path / "saved/tiny"
    tiny_pipeline(["a red star"], steps=2).save(folder)
    served = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    server.files[MAIN] = served
    for model, picture in (("owner/tiny", "hub.png"), (str(folder), "folder.png")):
        main(["generate", "a red star", "-m", model, "-o", picture])
    assert Path("hub.png").read_bytes() == Path("folder.png").read_bytes()
    assert server.fetched() == served.keys()


def test_the_environment_says_where_the_hub_and_its_cache_are(server: Hub, tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "limner", "download", "owner/tiny"], capture_output=True, text=True, env=environment
    )
    assert done.stdout.startswith(f"{tmp_path}/home/hub/models--owner--tiny/snapshots/{MAIN}  0.00 MB")
    assert done.stderr == "" and server.fetched() == NEEDED


def test_the_hub_is_not_imported_for_a_local_folder() -> None:
    program = "import sys; from limner.folders import find_model; find_model('shipped'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "huggingface_hub" not in done.stdout.split() and "limner.hub" in done.stdout.split()


@pytest.mark.parametrize("error", [KeyError("id"), TypeError("no list"), AttributeError("get"), ValueError("bad port")])
def test_an_answer_that_is_not_the_hub_s_is_one_sentence(error: Exception) -> None:
    with (
        pytest.raises(LimnerError, match="does not answer as the Hugging Face hub does: "),
        hub._explained("a/b", None),
    ):
        raise error


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:99999", "http://127.0.0.1:abc"])
def test_an_endpoint_that_is_no_address_is_one_sentence(endpoint: str, tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "limner", "download", "owner/tiny"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("limner: ") and "Traceback" not in done.stderr

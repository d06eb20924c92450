"""Makes the programs of `tests.e2e.recipes` in the cache directory, as far as they are not there: `make e2e-programs`.

What is there in the wanted version is left alone, so a second run costs nothing. A program is made in a directory of
its own and moved into place when it is whole: a run that is killed leaves the last version or none. Standard library
only.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.e2e.processes import remove_tree
from tests.e2e.recipes import CACHE, RECIPES, DebianRoot, GoFiles, GoProgram, Recipe

_MAKING = ".making-"
_AT_ONCE = 2  # one that compiles, and one that downloads or links
_ATTEMPTS = 2  # what the first one has fetched, the second one need not
_SECONDS = 1800.0  # for one command; the slowest needs a tenth of that on two cores
_OLDEST_GO = (1, 21)  # the first that fetches the newer Go that a module asks for
_FLAGS = ("-trimpath", "-buildvcs=false", "-mod=mod")
_PLAIN = {"GOFLAGS": " ".join(_FLAGS), "GOWORK": "off", "CGO_ENABLED": "0"}  # the same program on every machine
_STRIPPED = "-s -w"
_IN_REPOSITORY = re.compile(r"^\s*(?:replace\s+)?(\S+) => \./", re.MULTILINE)


class BuildError(Exception):
    """Something could not be made; says why in one sentence, or in the words of the program that failed."""


def main(recipes: Sequence[Recipe] = RECIPES, cache: Path = CACHE) -> int:
    """Makes what is missing. The exit code: 0, or 1 if something could not be made, which is then named."""
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache):
        for left_over in cache.glob(f"{_MAKING}*"):
            # What a killed run had started may still write there; then the run after this one removes it.
            with suppress(OSError):
                remove_tree(left_over)
        wanted = [recipe for recipe in recipes if not is_there(recipe, cache)]
        for recipe in recipes:
            if recipe not in wanted:
                print(f"have  {recipe.name} {recipe.version}", flush=True)
        failed = _make_all(wanted, cache)
    if failed:
        print(f"Not made: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def is_there(recipe: Recipe, cache: Path) -> bool:
    """Whether all of it is there, made by this very recipe."""
    stamp = _stamp(recipe, cache)
    whole = all((cache / output).exists() for output in recipe.outputs)
    return whole and stamp.exists() and stamp.read_text() == _recipe_text(recipe)


def make(recipe: Recipe, cache: Path) -> None:
    """Makes it and puts it into place. Raises BuildError."""
    making = Path(tempfile.mkdtemp(prefix=f"{_MAKING}{recipe.name}-", dir=cache))
    making.chmod(0o755)  # apt fetches as a user of its own, who has to get there
    try:
        made = _made(recipe, making)
        stamp = _stamp(recipe, cache)
        stamp.unlink(missing_ok=True)
        for output in recipe.outputs:
            _replace(made / output, cache / output, aside=making / "old")
        stamp.parent.mkdir(exist_ok=True)
        (making / "stamp").write_text(_recipe_text(recipe))
        (making / "stamp").replace(stamp)
    finally:
        remove_tree(making)


def _make_all(recipes: Sequence[Recipe], cache: Path) -> list[str]:
    """Makes these, some at a time, and says what became of each. Returns the names of those that failed."""
    failed = []
    if lacking := _lacking(recipes):
        without = [recipe.name for recipe in recipes if isinstance(recipe, GoProgram | GoFiles)]
        print(f"FAILED {', '.join(without)}: {lacking}", flush=True)
        failed += without
        recipes = [recipe for recipe in recipes if recipe.name not in without]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running = {pool.submit(_timed, recipe, cache): recipe for recipe in recipes}
        for done in as_completed(running):
            recipe = running[done]
            seconds, error = done.result()
            if error is None:
                print(f"built {recipe.name} {recipe.version} in {seconds:.0f} s", flush=True)
            else:
                print(f"FAILED {recipe.name} {recipe.version} after {seconds:.0f} s: {error}", flush=True)
                failed.append(recipe.name)
    return failed


def _timed(recipe: Recipe, cache: Path) -> tuple[float, BuildError | None]:
    began = time.monotonic()
    error: BuildError | None = None
    for _ in range(_ATTEMPTS):
        try:
            make(recipe, cache)
        except BuildError as exc:
            error = exc
        else:
            error = None
            break
    return time.monotonic() - began, error


def _made(recipe: Recipe, making: Path) -> Path:
    """Makes it in a directory of its own, and returns where its outputs are in there."""
    if isinstance(recipe, DebianRoot):
        return _make_root(recipe, making)
    return _fetch(recipe, making) if isinstance(recipe, GoFiles) else _build(recipe, making)


def _fetch(wanted: GoFiles, making: Path) -> Path:
    """Takes the files out of the module."""
    module, made = making / "module", making / "made"
    module.mkdir()
    env = _go_environment()
    _run("go", "mod", "init", "files", cwd=module, env=env)
    fetched = json.loads(
        _run("go", "mod", "download", "-json", f"{wanted.module}@{wanted.version}", cwd=module, env=env)
    )
    for output, file in wanted.files:
        (made / output).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(fetched["Dir"], file), made / output)
    return made


def _build(program: GoProgram, making: Path) -> Path:
    """Compiles the program in a module of our own that requires its module.

    `go install` would refuse a module that excludes or replaces others, as buildkit's does.
    """
    env = _go_environment()
    module, made = making / "module", making / "made"
    module.mkdir()
    _run("go", "mod", "init", "programs", cwd=module, env=env)
    if program.parts:
        _run("go", "mod", "edit", *_published(program, module, env), cwd=module, env=env)
    _run("go", "mod", "edit", f"-require={program.module}@{program.version}", cwd=module, env=env)
    if program.patch is not None:
        patched = _patched(program, making / "patched", module, env)
        _run("go", "mod", "edit", f"-replace={program.module}={patched}", cwd=module, env=env)
    for output, below in program.packages:
        command = ("test", "-c") if program.test else ("build",)
        package = f"{program.module}/{below}".rstrip("/")
        flags = f"-ldflags={_STRIPPED} {program.ldflags}".rstrip()
        _run("go", *command, flags, "-o", made / output, package, cwd=module, env=env)
    return made


def _published(program: GoProgram, module: Path, env: Mapping[str, str]) -> list[str]:
    """The replacements that take the program's parts as they are published; as it requires them, none is anywhere."""
    wanted = f"{program.module}@{program.version}"
    fetched = json.loads(_run("go", "mod", "download", "-json", wanted, cwd=module, env=env))
    parts = _IN_REPOSITORY.findall(Path(fetched["GoMod"]).read_text())
    return [f"-replace={part}={part}@{program.parts}" for part in parts]


def _patched(program: GoProgram, copy: Path, module: Path, env: Mapping[str, str]) -> Path:
    """A copy of the program's module with its patch applied."""
    assert program.patch is not None
    _run("go", "mod", "download", f"{program.module}@{program.version}", cwd=module, env=env)
    where = _run("go", "list", "-m", "-f", "{{.Dir}}", program.module, cwd=module, env=env).strip()
    shutil.copytree(where, copy, copy_function=shutil.copyfile)  # whose files are writable, as the cache's are not
    for directory in (copy, *(path for path in copy.rglob("*") if path.is_dir())):
        directory.chmod(0o755)
    source = copy / program.patch.file
    text = source.read_text()
    if text.count(program.patch.old) != 1:
        raise BuildError(f"{program.patch.file} does not hold, exactly once, the line that our patch replaces")
    source.write_text(text.replace(program.patch.old, program.patch.new))
    return copy


def _make_root(root: DebianRoot, making: Path) -> Path:
    """Installs the release and the packages, without those that they merely recommend."""
    if os.geteuid() != 0:
        raise BuildError("needs root")
    if shutil.which("mmdebstrap") is None:
        raise BuildError("needs mmdebstrap (Debian: mmdebstrap)")
    made = making / "made"
    made.mkdir()
    # Unsafe means not to wait for the disk after each file; a root that a crash cuts short has no stamp.
    _run(
        "mmdebstrap", "--quiet", "--variant=apt", "--mode=root", "--format=directory",
        '--aptopt=Apt::Install-Recommends "false"', "--dpkgopt=force-unsafe-io",
        f"--include={','.join(root.packages)}",
        root.version, made / root.name,
        cwd=making, env=os.environ,
    )  # fmt: skip
    return made


def _lacking(recipes: Sequence[Recipe]) -> str | None:
    """Why this machine's Go will not do for what is to be built, if so."""
    if not any(isinstance(recipe, GoProgram | GoFiles) for recipe in recipes):
        return None
    wanted = f"needs Go >= {'.'.join(map(str, _OLDEST_GO))}"
    if shutil.which("go") is None:
        return f"{wanted}, and there is no go on PATH"
    said = subprocess.run(["go", "version"], capture_output=True, text=True, check=False, env=_without_gobin()).stdout
    found = re.search(r"go(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < _OLDEST_GO:
        return f"{wanted}; the go on PATH says {said.strip()!r}"
    return None


def _go_environment() -> dict[str, str]:
    """The environment of every `go` command: nothing but the place of its caches is this machine's."""
    env = {"GOTOOLCHAIN": "auto", **_without_gobin(), **_PLAIN}
    proxies = subprocess.run(["go", "env", "GOPROXY"], capture_output=True, text=True, check=False, env=env).stdout
    # What no proxy serves fails at once, instead of asking every module's own site.
    return {**env, "GOPROXY": proxies.strip().removesuffix(",direct")}


def _without_gobin() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "GOBIN"}


def _run(*argv: str | Path, cwd: Path, env: Mapping[str, str]) -> str:
    """What a command printed. Raises BuildError, with the end of what it complained about, if it fails."""
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"{' '.join(map(str, argv[:2]))} took more than {_SECONDS:.0f} s") from None
    if done.returncode != 0:
        complaints = [line for line in done.stderr.splitlines() if not line.startswith("go: downloading")]
        raise BuildError("\n  ".join((f"{argv[0]} exited {done.returncode}", *complaints[-12:])))
    return done.stdout


def _replace(made: Path, place: Path, *, aside: Path) -> None:
    """Puts `made` into its place; what was there goes, though programs that run it keep it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():
        place.rename(aside)
    made.replace(place)


def _recipe_text(recipe: Recipe) -> str:
    return f"{recipe!r}\n" + (f"{_PLAIN} {_STRIPPED}\n" if isinstance(recipe, GoProgram) else "")


def _stamp(recipe: Recipe, cache: Path) -> Path:
    return cache / "stamps" / recipe.name


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Waits until nobody else makes programs in this cache."""
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # ends at once: what is half made lies aside, and the next run removes it
    sys.exit(main())

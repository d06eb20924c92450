"""Applying a plan to a node's files, and putting back what was there: all of it or nothing, also after a crash."""

from __future__ import annotations

from dataclasses import dataclass, field

from mirror.nodes.diary import NAME, Diary, Found
from mirror.nodes.errors import Foreign
from mirror.nodes.plan import Plan
from mirror.nodes.root import Root
from mirror.nodes.runtimes import Runtime
from mirror.nodes.wanted import Wanted


@dataclass
class Outcome:
    """What was done: files written, put back or removed. `advice` is for whoever looks after the node."""

    changed: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    """Files that somebody else has changed since we wrote them."""


def apply(runtime: Runtime, wanted: Wanted, root: Root) -> Outcome:
    """Has the runtime ask the mirror first. Once more with the same changes nothing.

    Raises Unusable where something that was found cannot be worked with, and Foreign where somebody changed what we
    wrote, both before anything is touched; NodeError where the disk fails: then `apply` or `restore` go on from there.
    """
    made = root.missing_directories(f"{runtime.directory}/{NAME}")
    root.make_directories(made)
    try:
        with root.locked(runtime.directory):
            outcome = _apply(runtime, wanted, root, made)
    except BaseException:
        root.remove_directories(made)
        raise
    if outcome.changed and runtime.reload:
        outcome.advice.append(runtime.reload)
    return outcome


def restore(runtime: Runtime, root: Root) -> Outcome:
    """Puts back what was there before `apply`. What somebody has changed since is left, and named in `foreign`; what
    was there before it stays in the diary. Raises NodeError, and Unusable for a diary that cannot be read.
    """
    outcome = Outcome()
    if not root.exists(runtime.directory):
        return outcome
    with root.locked(runtime.directory):
        diary = Diary.read(root, runtime.directory)
        for path in list(diary.pages):
            if diary.state(path) is Found.FOREIGN:
                outcome.foreign.append(path)
            else:
                _put_back(diary, path, outcome)
        diary.write()
    if not diary.pages:
        root.remove_directories(diary.directories)
    if outcome.changed and runtime.reload:
        outcome.advice.append(runtime.reload)
    return outcome


def _apply(runtime: Runtime, wanted: Wanted, root: Root, made: list[str]) -> Outcome:
    diary = Diary.read(root, runtime.directory)
    _refuse_foreign(diary)
    plan = runtime.plan(wanted, diary.before, root)
    outcome = Outcome(advice=plan.advice)
    given_up = [path for path in diary.pages if path not in plan.files]
    _note(diary, plan, made)
    for path, content in plan.files.items():
        if root.read(path) != content:
            root.write(path, content, diary.pages[path].owner)
            outcome.changed.append(path)
    for path in given_up:
        _put_back(diary, path, outcome)
    if given_up:
        # An empty directory of a registry would keep containerd from the settings for all.
        root.remove_directories(diary.directories)
        diary.directories = [path for path in diary.directories if root.exists(path)]
        diary.write()
    return outcome


def _refuse_foreign(diary: Diary) -> None:
    foreign = [path for path in diary.pages if diary.state(path) is Found.FOREIGN]
    if foreign:
        raise Foreign(
            f"{', '.join(foreign)}: changed by somebody else since `mirror node-config apply` wrote it. What was there "
            f"before is kept in {diary.path}. Undo the change, or remove that file from both places"
        )


def _note(diary: Diary, plan: Plan, made: list[str]) -> None:
    """Before anything is written."""
    missing = list(dict.fromkeys(above for path in plan.files for above in diary.root.missing_directories(path)))
    diary.directories += [path for path in [*made, *missing] if path not in diary.directories]
    news = [diary.note(path, content) for path, content in plan.files.items()]
    if any(news) or missing:
        diary.write()
    diary.root.make_directories(missing)


def _put_back(diary: Diary, path: str, outcome: Outcome) -> None:
    page = diary.pages[path]
    if diary.state(path) is Found.OURS:
        if page.before is not None:
            diary.root.write(path, page.before, page.owner)
        else:
            diary.root.remove(path)
        outcome.changed.append(path)
    del diary.pages[path]

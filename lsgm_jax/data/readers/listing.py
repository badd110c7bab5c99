"""The files of a folder or an archive by their names in normal form, with links followed."""

import bisect
import collections
import dataclasses
import itertools
from typing import Any

from lsgm_jax.bounded import LIMITS, check_size
from lsgm_jax.data.names import Folder, Skipped, components, unseen
from lsgm_jax.errors import DataError, printable

HOPS = 40  # links to links, as many as Linux follows


@dataclasses.dataclass(frozen=True)
class Listing:
    """Where the content of each file is, by its name in normal form.

    Attributes:
        where: the folder or archive, for errors.
        places: by name, what reads the content.
        skipped: what is no regular file, and files that a later one of the same name replaces.
    """

    where: object
    places: dict[str, Any] = dataclasses.field(default_factory=dict)
    skipped: list[Skipped] = dataclasses.field(default_factory=list)

    def add(self, name: str, place: Any) -> None:
        """Adds a file; of two with one name the later counts, as for the tools that unpack archives."""
        if normal := "/".join(components(name)):
            if normal in self.places:
                self.skipped.append(Skipped(name, "with the name of another file"))
            self.places[normal] = place
            check_size(len(self.places), LIMITS.members, self.where, what="files")

    def skip(self, name: str, reason: str) -> None:
        """Adds what is not read."""
        self.skipped.append(Skipped(name, reason))

    def follow(self, links: dict[str, str]) -> None:
        """Adds the files that links within an archive lead to; hidden links are skipped.

        Args:
            links: by name, the target: relative to the folder of the link, or from the root if it begins with `/`.

        Raises:
            DataError: if a link leads out of the archive, nowhere, or into a circle.
        """
        targets = {link: target for name, target in links.items() if not unseen(link := components(name))}
        files = sorted(components(name) for name in self.places)
        folders = sorted(targets)
        waiting = collections.deque(folders)
        while waiting:
            link = waiting.popleft()
            real = self._resolved(link, targets)
            if (place := self.places.get("/".join(real))) is not None:
                self.add("/".join(link), place)
                continue
            for name in self._inside(link, real, files, folders):
                copy = link + name[len(real) :]
                if name in targets:
                    targets[copy] = "/" + "/".join(name)
                    waiting.append(copy)
                    check_size(len(targets), LIMITS.members, self.where, what="links")
                else:
                    self.add("/".join(copy), self.places["/".join(name)])

    def _inside(self, link: Folder, real: Folder, files: list[Folder], links: list[Folder]) -> list[Folder]:
        """Returns the files and links in the folder `real`, where `link` leads."""
        if link[: len(real)] == real:
            raise self.refused(link, "to a folder that holds it")
        if not (inside := _below(files, real) + _below(links, real)):
            raise self.refused(link, f"to {printable('/'.join(real))}, which is not there")
        return inside

    def _resolved(self, link: Folder, targets: dict[Folder, str]) -> Folder:
        """Returns the name that a link leads to, after all links on the path to it."""
        ahead, done, hops = collections.deque(link), [], 0
        while ahead:
            part = ahead.popleft()
            if part == "..":
                if not done:
                    raise self.refused(link, "out of the archive")
                done.pop()
            elif part not in ("", "."):
                done.append(part)
            if (target := targets.get(tuple(done))) is not None and done:
                hops += 1
                if hops > HOPS:
                    raise self.refused(link, "into a circle")
                done = [] if target.startswith("/") else done[:-1]
                ahead.extendleft(reversed(target.replace("\\", "/").split("/")))
        return tuple(done)

    def refused(self, link: Folder, whereto: str) -> DataError:
        """Returns the error for a link that is not followed."""
        name = printable("/".join(link))
        return DataError(
            f"{name} in {self.where} is a link {whereto}: remove it, or put the files in its place"
        )


def _below(order: list[Folder], folder: Folder) -> list[Folder]:
    """Returns the names in a folder, from all names in order."""
    later = (order[index] for index in range(bisect.bisect_left(order, folder), len(order)))
    return list(itertools.takewhile(lambda name: name[: len(folder)] == folder, later))

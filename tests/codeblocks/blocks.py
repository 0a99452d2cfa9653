"""The blocks of code in a page, and what is said of each on the lines before it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
#: Blocks of these languages are run or read; what is ``text`` is output or a formula.
LANGUAGES = ("sh", "python", "yaml", "json", "text")
#: What pages of the site alone have besides; no code stands in it.
_DIRECTIVES = ("{eval-rst}", "{figure}", "{include}", "{toctree}")
_MARK = re.compile(r"<!-- (?P<word>needs|afresh)(: (?P<rest>[^\n]*\S))? -->\s*")
_COMMAND = re.compile(r"(\S+/)?(accelerate|btcompress|make|pip|pytest|python3?|torchrun) ")
_markdown = MarkdownIt("commonmark").enable("table")


class PageError(Exception):
    """What is wrong with a block, and where."""


@dataclass(frozen=True)
class Block:
    page: Path
    #: Line of the first line of code, counted from 1.
    line: int
    language: str
    code: str
    #: What it needs that is not here, as ``<!-- needs: WORDS -->`` before it says; it is then not run.
    needs: str | None = None
    #: Where ``<!-- afresh -->`` is before it, it and those after it begin with the stand-ins alone; with
    #: ``<!-- afresh: NAME -->`` with others.
    afresh: str | None = None

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def all_pages() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in order.

    Raises:
        PageError: a block is not fenced or of no language, or a mark is before none.
    """
    blocks, marks, end = [], {}, None
    for token in _markdown.parse(page.read_text(encoding="utf-8")):
        if token.map is None or token.type not in ("code_block", "fence", "html_block"):
            continue
        first = token.map[0]
        if marks and end != first:
            raise PageError(f"{page.name}:{end}: no block follows on the next line")
        if token.type == "html_block":
            if mark := _MARK.fullmatch(token.content):
                marks[mark["word"]] = mark["rest"] or ""
                end = first + len(token.content.splitlines())
            elif re.match(r"<!--\s*(needs|afresh)\b", token.content):
                raise PageError(
                    f"{page.name}:{first + 1}: write <!-- needs: WORDS -->, or <!-- afresh --> with a name or without"
                )
            continue
        where, language = f"{page.name}:{first + 1}", token.info.strip()
        if token.type == "code_block":
            raise PageError(f"{where}: fence the block, and say which language it is")
        if language.split(" ")[0] in _DIRECTIVES and not re.search(r"^\s*\.\. code", token.content, re.MULTILINE):
            continue
        if language not in LANGUAGES and "needs" not in marks:
            raise PageError(f"{where}: {language or 'no language'} is none of {', '.join(LANGUAGES)}")
        if marks.get("needs") == "":
            raise PageError(f"{where}: say what it needs")
        blocks.append(Block(page, first + 2, language, token.content, marks.get("needs"), marks.get("afresh")))
        marks = {}
    if marks:
        raise PageError(f"{page.name}:{end}: no block follows on the next line")
    return blocks


def commands_in_text(page: Path) -> list[tuple[int, list[str]]]:
    """Words of the commands that stand within sentences and tables, each with the line where its paragraph begins.

    What stands for a word, in capitals or as three dots, is 1, and what takes the output is left out.
    """
    found = []
    for token in _markdown.parse(page.read_text(encoding="utf-8")):
        for span in token.children or ():
            if span.type == "code_inline" and _COMMAND.match(span.content):
                words = shlex.split(re.sub(r"[|>].*", "", span.content))
                words = ["1" if re.fullmatch(r"[A-Z_]+|\.\.\.", word) else word for word in words]
                found.append((token.map[0] + 1, [Path(words[0]).name, *words[1:]]))
    return found

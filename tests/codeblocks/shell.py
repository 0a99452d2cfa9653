"""Blocks of shell commands, read by bash, whose programs are answered by this process.

Each program that a page may name is a small client in a folder that is all of ``PATH``: it sends its words, its folder,
its environment and what came through a pipe, and prints what comes back. So bash alone knows what quotes, pipes and
redirections mean, and torch is imported once for all commands.
"""

import json
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from codeblocks.blocks import Block, PageError

#: Of what POSIX has, as it is; whatever else a block that is run may name is among the programs.
_PLAIN = ("cat", "cp", "cut", "du", "grep", "head", "ls", "mkdir", "mv", "rm", "sed", "sort", "tail", "test", "wc")
_CLIENT = """#!{python} -ISs
import json, os, socket, stat, sys
piped = stat.S_ISFIFO(os.fstat(0).st_mode) or stat.S_ISREG(os.fstat(0).st_mode)
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
call = dict(words=words, folder=os.getcwd(), environ=dict(os.environ), piped=sys.stdin.read() if piped else "")
with socket.socket(socket.AF_UNIX) as line:
    line.connect(os.environ["PAGE_LINE"])
    with line.makefile("rw", encoding="utf-8") as file:
        file.write(json.dumps(call) + "\\n")
        file.flush()
        code, out, err = json.loads(file.readline())
sys.stdout.write(out)
sys.stdout.flush()
sys.stderr.write(err)
sys.exit(code)
"""
#: Of a block that is not run all commands are to be seen, whatever those before come to.
_UNKNOWN = "command_not_found_handle() { :; }\n"


@dataclass(frozen=True)
class Call:
    words: list[str]
    folder: str
    environ: Mapping[str, str]
    piped: str

    def __str__(self) -> str:
        return " ".join(self.words)


@dataclass(frozen=True)
class Answer:
    code: int = 0
    out: str = ""
    err: str = ""


Program = Callable[[Call], Answer]


class Shell:
    """Runs blocks in one folder, with one environment: what a block exports or where it goes to holds for the next.

    Args:
        running: programs of blocks that are run, by name.
        reading: those of the same names of blocks that are not.
        folder: where blocks are run.
        scratch: an empty folder for the shell's own files.
    """

    def __init__(self, running: Mapping[str, Program], reading: Mapping[str, Program], folder: Path, scratch: Path):
        self._running, self._reading, self._folder = running, reading, folder
        self._bin, self._plain, self._state = scratch / "bin", scratch / "plain", scratch / "state"
        self._bin.mkdir()
        for name in running:
            client = self._bin / name
            client.write_text(_CLIENT.format(python=sys.executable), encoding="utf-8")
            client.chmod(client.stat().st_mode | stat.S_IXUSR)
        self._plain.mkdir()
        for name in _PLAIN:
            if found := shutil.which(name):
                (self._plain / name).symlink_to(found)

    def run(self, block: Block) -> None:
        """Run it.

        Raises:
            PageError: it is no shell script, or a command failed.
        """
        before = f'[ ! -e "{self._state}" ] || . "{self._state}"\nset -e -o pipefail\n'
        after = f'{{ declare -px | grep -v -e " PATH=" -e " PAGE_LINE="; echo "cd \\"$PWD\\""; }} >"{self._state}"\n'
        path = f"{self._bin}:{self._plain}"
        code, told, failed = self._bash(block, before + block.code + after, path, self._running)
        if code:
            raise PageError(f"{block.place}: {'; '.join(failed)}: exit code {code}\n{told}")

    def check(self, block: Block) -> None:
        """Give each command to its program, which is to check its words; nothing else is run.

        Raises:
            PageError: it is no shell script, or a program does not take the words.
        """
        _, told, failed = self._bash(block, _UNKNOWN + block.code, str(self._bin), self._reading)
        if failed:
            raise PageError(f"{block.place}: {'; '.join(failed)}\n{told}")

    def _bash(
        self, block: Block, script: str, path: str, programs: Mapping[str, Program]
    ) -> tuple[int, str, list[str]]:
        """The exit code, what was told on both streams, and the commands that failed."""
        # Every word in it is of a page of this repository.
        bash = ["/bin/bash", "--norc", "--noprofile"]
        spelled = subprocess.run([*bash, "-n", "-c", block.code], capture_output=True, text=True, check=False)
        if spelled.returncode:
            raise PageError(f"{block.place}: bash cannot read it: {spelled.stderr.strip()}")
        # The path of a socket must be short.
        with (
            tempfile.TemporaryDirectory() as short,
            tempfile.TemporaryFile("w+", encoding="utf-8") as told,
            socket.socket(socket.AF_UNIX) as line,
        ):
            line.bind(address := f"{short}/line")
            line.listen()
            line.settimeout(0.02)
            environ = {"PATH": path, "HOME": str(self._folder), "LC_ALL": "C.UTF-8", "PAGE_LINE": address}
            process = subprocess.Popen(
                [*bash, "-c", script], cwd=self._folder, env=environ, stdin=subprocess.DEVNULL, stdout=told, stderr=told
            )
            failed = []
            while process.poll() is None:
                try:
                    caller, _ = line.accept()
                except TimeoutError:
                    continue
                caller.settimeout(None)
                with caller, caller.makefile("rw", encoding="utf-8") as file:
                    call = Call(**json.loads(file.readline()))
                    answer = programs[call.words[0]](call)
                    if answer.code:
                        failed.append(str(call))
                    json.dump((answer.code, answer.out, answer.err), file)
                    file.write("\n")
            told.seek(0)
            return process.returncode, told.read(), failed

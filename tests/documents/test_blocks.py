"""Every block of code in README, docs and docstrings is run, or says what it needs that is not here."""

import ast
import doctest
import re

import pytest

from codeblocks.blocks import ROOT, PageError, all_pages, blocks_of, commands_in_text
from codeblocks.programs import Programs
from codeblocks.runner import Runner
from codeblocks.shell import Call
from codeblocks.standins import PAGES, Shelf

PYTHON_FILES = sorted((ROOT / "btcompress").rglob("*.py"))


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def runner_of(shelf, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NO_COLOR", "1")

    def make(blocks, of):
        return Runner(blocks, shelf, of, capsys, monkeypatch, tmp_path)

    return make


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_blocks_of_a_page_run_in_order(page, runner_of, subtests):
    if not (blocks := blocks_of(page)):
        return
    runner = runner_of(blocks, of=page.name)
    for block in blocks:
        with subtests.test(msg=block.place):
            runner.do(block)


#: What sentences leave out.
_LEFT_OUT = re.compile(r"Missing (argument|command|option)|the following arguments are required|No such command '1'")


@pytest.mark.parametrize("page", all_pages(), ids=lambda page: page.name)
def test_commands_within_sentences_have_options_that_there_are(page, capsys, tmp_path):
    reading = Programs(capsys, invoked=False).by_name
    for line, words in commands_in_text(page):
        answer = reading[words[0]](Call(words, str(tmp_path), {}, ""))
        taken = answer.code == 0 or words[-1] == "btcompress" or _LEFT_OUT.search(answer.err)
        assert taken, f"{page.name}:{line}: {' '.join(words)}: {answer.err}"


def test_what_is_wrong_in_commands_within_sentences_is_found(capsys, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Do `btcompress report --jsn`,\n\n- `make nothing`,\n- `torchrun -m btcompress inspect --cpu`.\n")
    for line, words in commands_in_text(page):
        answer = Programs(capsys, invoked=False).by_name[words[0]](Call(words, str(tmp_path), {}, ""))
        assert (line, bool(answer.code), bool(_LEFT_OUT.search(answer.err))) == (line, True, False)
    assert [line for line, _ in commands_in_text(page)] == [1, 3, 4]


@pytest.mark.parametrize("of", PAGES)
def test_pages_name_what_lies_there_for_them(of):
    name, _, part = of.partition(": ")
    (page,) = (page for page in all_pages() if page.name == name)
    blocks = blocks_of(page)
    assert not part or part in {block.afresh for block in blocks}
    code = "\n".join(block.code for block in blocks)
    for each in (*PAGES[of].files, *PAGES[of].names):
        assert re.search(rf"(?<![\w.-]){re.escape(each)}(?![\w-])", code), f"no block of {name} names {each}"


def docstrings():
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in PYTHON_FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield path, getattr(node, "lineno", 1), text


def test_code_in_docstrings_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = 0
    for path, line, text in docstrings():
        seen += 1
        where = f"{path.relative_to(ROOT)}:{line}"
        assert "```" not in text, f"{where}: write code behind >>>, where this test runs it"
        assert not re.search(r"::$", text, re.MULTILINE), f"{where}: write code behind >>>, where this test runs it"
        told = []
        example = doctest.DocTestParser().get_doctest(text, {}, where, str(path), line)
        doctest.DocTestRunner().run(example, out=told.append)
        assert not told, "".join(told)
    assert seen > 1000


def sh(code):
    return f"```sh\n{code}\n```\n"


def python(code):
    return f"```python\n{code}\n```\n"


NEEDED = "<!-- needs: a GPU -->\n"
RECIPE = "```yaml\nversion: 1\nmodel: model.pt\noutput: small.safetensors\nsteps:\n- factorize: {cp_ranks: 2}\n```\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (sh("btcompress squeeze model.bt.safetensors"), "No such command 'squeeze'"),
        (sh("btcompress inspect model.bt.safetensors --colour"), "No such option: --colour"),
        (sh("btcompress report other.safetensors"), "other.safetensors"),
        (sh("btcompress report other.safetensors | cat"), "other.safetensors"),
        (2 * sh("btcompress export model.bt.safetensors --to dense -o dense.pt"), "--force"),
        (sh("btcompress report 'model.bt.safetensors"), "page.md:2: bash cannot read it"),
        (sh("BTCOMPRESS_SEEDS=1 btcompress report model.bt.safetensors"), "BTCOMPRESS_SEEDS: no option"),
        (sh("curl example.org"), "curl: command not found"),
        (sh("python -m http.server"), "python is not known to take that"),
        (sh("python -c 'raise SystemExit(3)'"), "exit code 3"),
        (sh("pip install 'btcompress[gpu]'"), "there is no extra gpu"),
        (sh("pip install -e '.[gpu]'"), "there is no extra gpu"),
        (sh("pip install --quick btcompress"), "pip is not known to take --quick"),
        (sh("pip instal btcompress"), "invalid choice: 'instal'"),
        (sh("pip install torch"), "say what the block needs"),
        (sh("make nothing"), "nothing"),
        (sh("make demo TASKS=video"), "TASKS=video: the Makefile has no such variable"),
        (sh("python tests/benchmarks/lstm_speed.py --fast"), "--fast"),
        (sh("python tests/benchmarks/lstm.py"), "there is no tests/benchmarks/lstm.py"),
        (sh("pytest tests/test_cli.py::test_of_nothing"), "has no test_of_nothing"),
        (NEEDED + sh("btcompress factorize big.pt --devise cuda"), "No such option: --devise"),
        (NEEDED + sh("torchrun -n 2 -m btcompress finetune small.pt --cpus"), "No such option: --cpus"),
        (sh("torchrun -n 2 -m btcompress finetune small.pt --cpu"), "say what the block needs"),
        (NEEDED + sh("cd nowhere\nunknown\nbtcompress squeeze"), "No such command 'squeeze'"),
        (NEEDED + sh("tests/benchmarks/gpu.bash"), "there is no tests/benchmarks/gpu.bash"),
        (NEEDED + sh("if"), "bash cannot read it"),
        (
            python("import btcompress\n\nbtcompress.compres"),
            "page.md:4: AttributeError: module 'btcompress'",
        ),
        (python("assert 1 + 1 == 3"), "page.md:2: AssertionError"),
        (NEEDED + python("import btcompress\nbtcompress.compres(model)"), "page.md:4: btcompress has no compres"),
        (NEEDED + python("from btcompress.hub import take"), "page.md:3: btcompress.hub has no take"),
        (python("x = (1,\n\ny"), "page.md:2: '(' was never closed"),
        (RECIPE, "cp_ranks"),
        (NEEDED + RECIPE, "cp_ranks"),
        ("```json\n{\n```\n", "page.md:2: JSONDecodeError"),
        ("```console\n$ ls\n```\n", "page.md:1: console is none of sh, python"),
        ("```\nls\n```\n", "page.md:1: no language is none of"),
        ("```{code-block} sh\nls\n```\n", "page.md:1: {code-block} sh is none of"),
        ("```{eval-rst}\n.. code-block:: sh\n\n  ls\n```\n", "page.md:1: {eval-rst} is none of"),
        ("- Item:\n\n  ```bash\n  ls\n  ```\n", "page.md:3: bash is none of"),
        ("Words:\n\n    btcompress report\n", "page.md:3: fence the block"),
        (NEEDED + "\n" + sh("ls"), "page.md:1: no block follows"),
        (NEEDED, "page.md:1: no block follows"),
        ("<!-- needs -->\n" + sh("ls"), "page.md:2: say what it needs"),
        ("<!-- needs a GPU -->\n" + sh("ls"), "page.md:1: write <!-- needs: WORDS -->"),
    ],
)
def test_what_is_wrong_in_a_block_is_found(text, words, runner_of, tmp_path):
    with pytest.raises(PageError, match=re.escape(words)):
        do(text, runner_of, tmp_path)


GOOD = """
```sh
python3 -m venv .venv
. .venv/bin/activate
python -m pip install -e '.[onnx]'   # words
cp model.bt.safetensors "my model"
for name in model.bt.safetensors \\
    "my model"; do
    btcompress report "$name" --json | grep -c matrices > lines
done
export PAGE=1
mkdir within && cd within
```

<!-- needs: the network -->
```sh
git clone https://example.org/nothing && cd nothing
curl https://example.org | btcompress inspect model.pt --json >told
btcompress --install-completion
pip install --no-deps --target there another==1.2; touch seen
cp "$(python -c 'import another; print(another)')/model.pt" model.pt
```

```sh
test "$PAGE" = 1
btcompress export ../model.bt.safetensors --to dense -o dense.pt
cat > script.py <<'END'
import os, sys
assert sys.argv[1:] == ["a b"] and os.environ["PAGE"] == "1" and os.path.exists("dense.pt")
END
test "$(python script.py 'a b')$(python -c 'print(1 + 1)')" = 2
```

<!-- afresh -->
```sh
test ! -e within && btcompress export model.bt.safetensors --to dense -o dense.pt
```

```text
$ not run
```
"""


def test_blocks_go_on_where_those_before_stopped_until_they_begin_afresh(runner_of, tmp_path):
    runner = do(GOOD, runner_of, tmp_path)
    assert {path.name for path in runner.folder.iterdir()} == {"model.bt.safetensors", "dense.pt"}


def do(text, runner_of, tmp_path):
    """Do all blocks of a page with this text, which finds what docs/bench.md does."""
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    blocks = blocks_of(page)
    runner = runner_of(blocks, of="bench.md")
    for block in blocks:
        runner.do(block)
    return runner

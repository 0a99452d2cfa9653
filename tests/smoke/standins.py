"""torch for CPUs where its index has it for CUDA alone: empty packages and libraries stand in for gigabytes.

On Linux, torch from PyPI is linked to NVIDIA's libraries and asks for their packages, which take 3 GB to download and
which nothing on a CPU calls. Packages without contents satisfy what it asks for, and libraries whose functions do no
more than end the process let it load; the runtime, which is asked whether there is a GPU, is the real one. Nothing is
done where torch asks for none of them, or where there is no compiler to make libraries with: all is installed then.
"""

import json
import re
import shutil
import zipfile

from smoke.commands import run

#: Packages that are large, and that torch does without on a CPU.
_LARGE = re.compile(r"nvidia[-_](?!cuda[-_]runtime)|triton$")
#: Libraries in these; that of the driver is no part of any package.
_LIBRARY = re.compile(r"lib(cu(?!da\.)|nccl|nv)")
#: Functions of these, but for the runtime's and the driver's.
_FUNCTION = re.compile(r"cu(blas|dnn|fft|File|pti|rand|solver|sparse)|nccl[A-Z]|nv[a-zJ]")


def needed(pip, constraints, folder):
    """Make the packages that stand in, if any do.

    Args:
        pip: of the environment.
        constraints: the versions to install.
        folder: where to put the packages.

    Returns:
        Their folder, and whether there are any.
    """
    wheels = folder / "standins"
    wheels.mkdir()
    if not all(map(shutil.which, ("cc", "nm", "readelf"))):
        return wheels, False
    told = json.loads(pip("install", "--dry-run", "--report", "-", "--constraint", constraints, "torch"))
    for each in told["install"]:
        name, version = each["metadata"]["name"], each["metadata"]["version"]
        if _LARGE.match(name):
            _write_wheel(wheels, re.sub(r"[-_.]+", "_", name), version)
    return wheels, any(wheels.iterdir())


def put(venv):
    """Make the libraries that torch lacks, beside its own; returns their names."""
    (packages,) = venv.glob("lib/python3.*/site-packages")
    own = packages / "torch" / "lib"
    there = {path.name for path in (*own.iterdir(), *packages.glob("nvidia/**/*.so*"))}
    linking = [*own.glob("*.so*"), *packages.glob("torch/_C*.so")]
    linked = re.findall(r"\(NEEDED\).*\[(.+)\]", "".join(run("readelf", "-d", path) for path in linking))
    lacking = sorted({name for name in linked if _LIBRARY.match(name)} - there)
    # All of the functions in each library: which of them is in which, torch does not say.
    called = "".join(run("nm", "--dynamic", "--undefined-only", path) for path in linking)
    source = packages / "standins.c"
    names = sorted({name.partition("@")[0] for name in called.split() if _FUNCTION.match(name)})
    source.write_text("".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in names))
    # NVIDIA's have one version of all functions, if any.
    asked = "".join(run("readelf", "--version-info", path) for path in linking)
    versions = dict(re.findall(r"File: (\S+)\s+Cnt: \d+\s+\S+:\s+Name: (\S+)", asked))
    script = packages / "standins.map"
    for name in lacking:
        script.write_text(f"{versions.get(name, name)} {{ *; }};")
        linker = f"-Wl,-soname,{name},--version-script,{script}"
        run("cc", "-w", "-shared", "-fPIC", "-fno-builtin", source, linker, "-o", own / name)
    for made in (source, script):
        made.unlink(missing_ok=True)
    return lacking


def _write_wheel(folder, name, version):
    """A package of this name without contents; pip prefers the longer version, which satisfies the same pins."""
    about = f"{name}-{version}+standin.dist-info"
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}+standin\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: standin\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "".join(f"{about}/{file},,\n" for file in ("METADATA", "WHEEL", "RECORD")),
    }
    with zipfile.ZipFile(folder / f"{name}-{version}+standin-py3-none-any.whl", "w") as archive:
        for file, text in texts.items():
            archive.writestr(f"{about}/{file}", text)

"""Builds the optional CPU kernels; everything else about the package stands in pyproject.toml.

The kernels are plain C++17 behind ``extern "C"``, loaded with ctypes: no Python or torch headers, so one library serves
every Python version. Each instruction set gets a shared library of its own, ``hasten/kernels/cpu/libhasten_<isa>.so``,
and the package picks one when it starts. Nothing here can fail an installation: where no library can be built, hasten
runs on plain torch.

``make native`` (``python setup.py build_ext --inplace``) rebuilds quickly while developing.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FOLDER = Path("hasten", "kernels", "cpu")
SOURCES = ROOT / "src" / FOLDER

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
X86 = {
    "avx512bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"],
    "avx512": AVX512,
    "avx2": AVX2,
    "generic": [],
}

COMPILE = [
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    # Keep a process that loads two instruction sets (the tests do) from mixing their functions and statics.
    "-fno-semantic-interposition",
    "-fno-gnu-unique",
]
# Not linked against libgomp on purpose: GOMP_* resolve when loaded, against the OpenMP runtime that torch brought. A
# second one would bring a second thread pool to fight for the cores. "lazy" undoes the "now" some distributions set.
LINK = ["-shared", "-Wl,-z,lazy"]


def variants() -> dict[str, list[str]]:
    """Instruction set -> compiler flags, for the processor family of this machine."""
    return X86 if platform.machine().lower() in ("x86_64", "amd64") else {"generic": []}


def find_compiler() -> list[str]:
    """The command of a GNU C++ compiler. Raises RuntimeError, saying why, when there is none."""
    if sys.platform != "linux":
        raise RuntimeError(f"they are built on Linux only, not on {sys.platform}")
    candidates = [os.environ["CXX"].split()] if os.environ.get("CXX", "").strip() else [["g++"], ["c++"]]
    for command in candidates:
        if shutil.which(command[0]) is None:
            continue
        macros = subprocess.run([*command, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True)
        # Clang compiles OpenMP to the entry points of its own runtime, which is not the one torch loads.
        if macros.returncode == 0 and "__GNUC__" in macros.stdout and "__clang__" not in macros.stdout:
            return command
    tried = ", ".join(command[0] for command in candidates)
    raise RuntimeError(f"no GNU C++ compiler found (tried {tried}); on Debian or Ubuntu: apt install g++")


class BuildKernels(build_ext):
    """Compiles the kernels once for each instruction set, with the compilers in parallel.

    In an editable install or with ``--inplace`` the libraries are put beside their sources, otherwise into the build
    folder from which a wheel is made. A library that is newer than the sources and this file is kept.
    """

    def run(self) -> None:
        destination = SOURCES if self._in_place else self._build_folder
        try:
            self._build(destination)
        except Exception as error:  # whatever it is, an installation goes on without the kernels
            self._say(f"no CPU kernels: {error}; hasten will run on plain torch")

    def _build(self, destination: Path) -> None:
        sources = sorted(SOURCES.glob("*.cpp"))
        if not sources:
            raise RuntimeError(f"no C++ sources in {SOURCES}")
        inputs = [*sources, *SOURCES.glob("*.h"), Path(__file__).resolve()]
        newest = max(path.stat().st_mtime for path in inputs)
        wanted = {}
        for isa, flags in variants().items():
            library = destination / f"libhasten_{isa}.so"
            if self.force or not library.exists() or library.stat().st_mtime < newest:
                # A library of older sources would be worse than none, should the build fail.
                library.unlink(missing_ok=True)
                wanted[isa] = flags
        if not wanted:
            return
        compiler = find_compiler()
        destination.mkdir(parents=True, exist_ok=True)
        work = Path(self.build_temp).resolve() / "kernels"
        work.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = {
                isa: [
                    pool.submit(self._compile, compiler, flags, source, work / f"{source.stem}.{isa}.o") for source in sources
                ]
                for isa, flags in wanted.items()
            }
            failed: dict[str, list[str]] = {}
            for isa, futures in objects.items():
                try:
                    self._link(compiler, [future.result() for future in futures], destination / f"libhasten_{isa}.so")
                except subprocess.CalledProcessError as error:
                    failed.setdefault(error.stderr.strip() or str(error), []).append(isa)
                else:
                    self._say(f"built CPU kernels for {isa}")
        for output, isas in failed.items():
            if self._by_developer:
                print(output, file=sys.stderr, flush=True)
            lines = output.splitlines()
            why = next((line for line in lines if "error" in line), lines[0])
            self._say(f"no CPU kernels for {', '.join(isas)}: {why}")

    def _compile(self, compiler: list[str], flags: list[str], source: Path, output: Path) -> Path:
        extra = os.environ.get("CXXFLAGS", "").split()
        # GCC 12 calls the undefined values in its own AVX-512 headers uninitialised (its bug 105593).
        warnings = ["-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
        if not self._by_developer:
            warnings = ["-w"]
        done = subprocess.run(
            [*compiler, *COMPILE, *warnings, *flags, *extra, "-c", str(source), "-o", str(output)],
            capture_output=True,
            text=True,
            check=True,
        )
        if done.stderr:
            print(done.stderr, file=sys.stderr)
        return output

    def _link(self, compiler: list[str], objects: list[Path], library: Path) -> None:
        # Under another name first: writing into a library that a running process has mapped would crash it.
        fresh = library.with_name(f".{library.name}.{os.getpid()}")
        try:
            subprocess.run([*compiler, *LINK, *map(str, objects), "-o", str(fresh)], capture_output=True, text=True, check=True)
            os.replace(fresh, library)
        finally:
            fresh.unlink(missing_ok=True)

    @property
    def _in_place(self) -> bool:
        return bool(self.inplace or self.editable_mode)

    @property
    def _by_developer(self) -> bool:
        """Called as ``setup.py build_ext --inplace``, so the whole output of the compiler is of use."""
        return bool(self.inplace and not self.editable_mode)

    @property
    def _build_folder(self) -> Path:
        return Path(self.build_lib).resolve() / FOLDER

    def _say(self, line: str) -> None:
        print(f"hasten: {line}", flush=True)

    # What setuptools asks about the outputs: an extension built the usual way would be one file with a known name.

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib, FOLDER, name)) for name in self._libraries()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self._in_place:
            return {}
        return {str(Path(self.build_lib, FOLDER, name)): str(SOURCES / name) for name in self._libraries()}

    def get_source_files(self) -> list[str]:
        return []  # the sources are package data

    def _libraries(self) -> list[str]:
        folder = SOURCES if self._in_place else self._build_folder
        return [name for isa in variants() if (folder / (name := f"libhasten_{isa}.so")).exists()]


class Wheel(bdist_wheel):
    """A wheel with libraries is for one platform but for any Python 3; without them it is for every platform."""

    def get_tag(self) -> tuple[str, str, str]:
        kernels = self.get_finalized_command("build_ext")
        self.root_is_pure = not kernels.get_outputs()
        _, _, machine = super().get_tag()
        return ("py3", "none", machine)


setup(
    # A marker: it makes setuptools run build_ext and treat the package as one with compiled parts.
    ext_modules=[Extension("hasten.kernels.cpu.kernels", sources=[])],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)

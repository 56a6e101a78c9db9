"""Builds the optional native libraries; everything else about the package stands in pyproject.toml.

They are plain C++17 behind ``extern "C"``, loaded with ctypes: no Python or torch headers, so one library serves every
Python version. The CPU kernels get a shared library for each instruction set, ``hasten/kernels/cpu/libhasten_<isa>.so``,
and the package picks one when it starts; an editable install has only those that the machine it is built on can run (``make
clean native`` where it is moved to another one). Grammars get one, ``hasten/kernels/grammar/libhasten_grammar.so``, and so does
entropy coding, which picks its instructions itself. Nothing here can fail an installation: without kernels hasten runs on plain
torch, without grammars it refuses constrained requests, without entropy coding compressed KV.

``make native`` (``python setup.py build_ext --inplace``) rebuilds quickly while developing.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "src"
KERNELS = Path("hasten", "kernels")

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
X86 = {
    "avx512bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"],
    "avx512": AVX512,
    "avx2": AVX2,
    "generic": [],
}
# Features by which /proc/cpuinfo names what a library needs (kernels/cpu/native.py has them all).
TELLING = {"avx512bf16": {"avx512_bf16", "avx512_vnni"}, "avx512": {"avx512dq", "avx512vl"}, "avx2": {"avx2", "fma"}}

COMPILE = [
    "-O3",
    "-std=c++17",
    "-fPIC",
    # Keep a process that loads two instruction sets (the tests do) from mixing their functions and statics.
    "-fno-semantic-interposition",
    "-fno-gnu-unique",
]
# Not linked against libgomp on purpose: GOMP_* resolve when loaded, against the OpenMP runtime that torch brought. A
# second one would bring a second thread pool to fight for the cores. "lazy" undoes the "now" some distributions set.
LINK = ["-shared", "-Wl,-z,lazy"]


@dataclass(frozen=True)
class Library:
    """`folder`: below src, where the sources are and the library belongs. `flags`: of the compiler."""

    folder: Path
    name: str
    flags: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.folder / f"libhasten_{self.name}.so"

    def sources(self) -> list[Path]:
        return sorted((SOURCES / self.folder).glob("*.cpp"))

    def changed(self) -> float:
        """When the newest of what it is made of was changed."""
        inputs = [*self.sources(), *(SOURCES / self.folder).glob("*.h"), Path(__file__).resolve()]
        return max(path.stat().st_mtime for path in inputs)


def libraries(runnable: bool) -> list[Library]:
    """Of the processor family of this machine; `runnable`: only those that this very processor can run, as far as it says."""
    variants = X86 if platform.machine().lower() in ("x86_64", "amd64") else {"generic": []}
    if runnable and (features := processor_features()):
        variants = {isa: flags for isa, flags in variants.items() if TELLING.get(isa, set()) <= features}
    kernels = [Library(KERNELS / "cpu", isa, ("-fopenmp", "-fno-math-errno", *flags)) for isa, flags in variants.items()]
    # Without fused multiply-adds every instruction set decodes to the same bits.
    entropy = Library(KERNELS / "entropy", "entropy", ("-ffp-contract=off",))
    return [*kernels, Library(KERNELS / "grammar", "grammar", ("-pthread",)), entropy]


def processor_features() -> set[str]:
    """Empty where they are not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


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


class BuildLibraries(build_ext):
    """Compiles the libraries with the compilers in parallel.

    In an editable install or with ``--inplace`` the libraries are put beside their sources, otherwise into the build
    folder from which a wheel is made. A library that is newer than the sources and this file is kept.
    """

    def run(self) -> None:
        try:
            self._build()
        except Exception as error:  # whatever it is, an installation goes on without the libraries
            self._say(f"no native libraries: {error}; hasten will run on plain torch and without grammars")

    def _build(self) -> None:
        wanted = []
        for library in libraries(runnable=False):
            if not library.sources():
                raise RuntimeError(f"no C++ sources in {SOURCES / library.folder}")
            output = self._destination / library.path
            if self.force or not output.exists() or output.stat().st_mtime < library.changed():
                # A library of older sources would be worse than none, should the build fail.
                output.unlink(missing_ok=True)
                wanted.append(library)
        if self._in_place:  # for this machine; a package is for any
            runnable = libraries(runnable=True)
            wanted = [library for library in wanted if library in runnable]
        if not wanted:
            return
        compiler = find_compiler()
        work = Path(self.build_temp).resolve() / "kernels"
        work.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            objects = {
                library: [
                    pool.submit(self._compile, compiler, library.flags, source, work / f"{source.stem}.{library.name}.o")
                    for source in library.sources()
                ]
                for library in wanted
            }
            failed: dict[str, list[str]] = {}
            for library, futures in objects.items():
                try:
                    self._link(compiler, [future.result() for future in futures], self._destination / library.path)
                except subprocess.CalledProcessError as error:
                    failed.setdefault(error.stderr.strip() or str(error), []).append(library.path.name)
                else:
                    self._say(f"built {library.path.name}")
        for output, names in failed.items():
            if self._by_developer:
                print(output, file=sys.stderr, flush=True)
            lines = output.splitlines()
            why = next((line for line in lines if "error" in line), lines[0])
            self._say(f"no {', '.join(names)}: {why}")

    def _compile(self, compiler: list[str], flags: tuple[str, ...], source: Path, output: Path) -> Path:
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
        library.parent.mkdir(parents=True, exist_ok=True)
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
    def _destination(self) -> Path:
        return SOURCES if self._in_place else Path(self.build_lib).resolve()

    def _say(self, line: str) -> None:
        print(f"hasten: {line}", flush=True)

    # What setuptools asks about the outputs: an extension built the usual way would be one file with a known name.

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib, path)) for path in self._built()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self._in_place:
            return {}
        return {str(Path(self.build_lib, path)): str(SOURCES / path) for path in self._built()}

    def get_source_files(self) -> list[str]:
        return []  # the sources are package data

    def _built(self) -> list[Path]:
        return [library.path for library in libraries(runnable=False) if (self._destination / library.path).exists()]


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
    cmdclass={"build_ext": BuildLibraries, "bdist_wheel": Wheel},
)

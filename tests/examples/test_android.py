"""The Android app's Java and C++ in a real JVM: nano says through them what it says in Python.

Compiled here: the Java face, and its JNI library for this machine and for Arm. Not here, for want of the NDK and the
Android SDK: the app itself.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import mobilemoe
from commands import run
from mobilemoe.hub import find_model
from places import ROOT

MAIN = ROOT / "examples" / "android" / "app" / "src" / "main"
JAVA = sorted((MAIN / "java" / "org" / "mobilemoe").glob("*.java"))
JNI = MAIN / "cpp" / "mobilemoe_jni.cpp"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wmissing-declarations", "-Werror"]
PROMPTS = [
    "The old man looked at the sea and",
    "def add(a, b):\n    return",
    "don't  stop\n\n\tat 12345 “quotes”, naïve café\u00a0and 東京 🙂",
    "  \r\n  ",
    "<|eot|> is plain text",
]
LETTERS = [*"abz'sS tTreVmdl019.,!-_\n\r\t\v\f \xa0\u2003\u2028\x85éñßДжы漢字かな한국مرح१२٣½²🙂\u0301\u200d“”…"]
ASKS = """
import java.nio.file.*;
import java.util.Arrays;
import org.mobilemoe.*;
import org.json.*;

public class Asks {
    public static void main(String[] arguments) throws Exception {
        JSONArray prompts = new JSONArray(new String(Files.readAllBytes(Path.of(arguments[1])), "UTF-8"));
        JSONArray found = new JSONArray();
        try (TextModel model = new TextModel(Path.of(arguments[0]).toFile(), 1)) {
            for (int i = 0; i < prompts.length(); i++) {
                StringBuilder text = new StringBuilder();
                int[] pieces = {0};
                int[] ids = model.prompt(prompts.getString(i)), question = model.question(prompts.getString(i));
                if (i < 5) model.write(ids, 16, 0, 0, piece -> { text.append(piece); return ++pieces[0] < 16; });
                JSONObject each = new JSONObject().put("text", text.toString()).put("pieces", pieces[0]);
                found.put(each.put("ids", new JSONArray(ids)).put("question", new JSONArray(question)));
            }
        }
        Path kept = Path.of(arguments[0], "model.mobilemoe");
        Files.write(kept, Arrays.copyOf(Files.readAllBytes(kept), 1000));
        try (TextModel model = new TextModel(Path.of(arguments[0]).toFile(), 1)) {
            found.put(Files.size(kept));
            try {
                model.write(new int[9999], 16, 0, 0, piece -> true);
            } catch (EngineException error) {
                found.put(error.getMessage());
            }
        }
        try (Engine engine = new Engine(arguments[0], 1)) {
            engine.append(new int[] {1});
        } catch (EngineException error) {
            found.put(error.getMessage());
        }
        try {
            new Engine("/nothing/here", 1);
        } catch (EngineException error) {
            found.put(error.getMessage());
        }
        Files.writeString(Path.of(arguments[2]), found.toString());
    }
}
"""


@pytest.fixture(scope="module")
def jdk():
    """The folder of a Java development kit with the header of JNI."""
    javac = shutil.which("javac")
    home = Path(os.environ["JAVA_HOME"]) if "JAVA_HOME" in os.environ else javac and Path(javac).resolve().parents[1]
    if not home or not (home / "include" / "jni.h").is_file():
        pytest.skip("no Java development kit is installed")
    return home


@pytest.fixture(scope="module")
def json_library():
    """org.json, which Android has and Java has not (Debian: libandroid-json-java)."""
    path = Path("/usr/share/java/com.android.json.jar")
    if not path.exists():
        pytest.skip("no library org.json is installed (Debian: libandroid-json-java)")
    return path


@pytest.fixture(scope="module")
def classes(jdk, json_library, tmp_path_factory):
    """The compiled Java, and in `jni` the header that its native methods ask for."""
    folder = tmp_path_factory.mktemp("classes")
    (folder / "Asks.java").write_text(ASKS)
    strict = ["--release", "17", "-Xlint:all,-serial", "-Werror", "-cp", json_library]
    run(jdk / "bin" / "javac", *strict, "-h", folder / "jni", "-d", folder, *JAVA, folder / "Asks.java")
    return folder


def includes(jdk, classes):
    """Also the header made from Engine.java: with it, a method that only one side has is an error of the compiler."""
    system = "darwin" if sys.platform == "darwin" else "linux"
    folders = [f"-I{path}" for path in (jdk / "include", jdk / "include" / system, ROOT / "native" / "include")]
    return [*folders, "-include", classes / "jni" / "org_mobilemoe_Engine.h"]


def test_nano_writes_in_a_jvm_what_it_writes_in_python(jdk, json_library, classes, tmp_path):
    engine = ROOT / "build" / "native" / "libmobilemoe_core.a"
    if not engine.exists() or shutil.which("c++") is None:
        pytest.skip("the engine was not compiled here (make setup)")
    library = classes / "libmobilemoe_jni.so"
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", *WARNINGS, *includes(jdk, classes)]
    run("c++", *flags, JNI, engine, "-pthread", "-o", library)
    shutil.copytree(find_model("nano"), tmp_path / "nano")
    rng = np.random.default_rng(1)
    mixed = ["".join(rng.choice(LETTERS, rng.integers(1, 24))) for _ in range(500)]
    (tmp_path / "prompts").write_text(json.dumps([*PROMPTS, *mixed]))
    java = [jdk / "bin" / "java", "-Xcheck:jni", "-cp", f"{classes}:{json_library}", f"-Djava.library.path={classes}"]
    run(*java, "Asks", tmp_path / "nano", tmp_path / "prompts", tmp_path / "answers")
    *answers, size, long, early, missing = json.loads((tmp_path / "answers").read_text())
    assert size > 10**7, "half an engine file was written again"
    assert long == "the text has 9999 tokens, more than the context of 2048"
    assert early == "start a text before appending to it"
    assert "/nothing/here" in missing
    assert (tmp_path / "nano" / "model.mobilemoe").is_file()
    ours = mobilemoe.load("nano")
    for prompt, answer in zip([*PROMPTS, *mixed], answers, strict=True):
        assert answer["ids"] == ours.encode(prompt), prompt
        assert answer["question"] == ours.encode(messages=[{"role": "user", "content": prompt}]), prompt
    for prompt, answer in zip(PROMPTS, answers, strict=False):
        assert answer["pieces"] > 1
        assert answer["text"].rstrip("\ufffd") == ours.generate(prompt, max_new_tokens=16).rstrip("\ufffd"), prompt


def test_the_jni_library_compiles_for_arm(jdk, classes, tmp_path):
    pytest.importorskip("ziglang")
    arm = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-std=c++17", "-O1"]
    run(*arm, *WARNINGS, *includes(jdk, classes), "-c", JNI, "-o", tmp_path / "jni.o")
    assert (tmp_path / "jni.o").read_bytes()[:4] == b"\x7fELF"
    assert int.from_bytes((tmp_path / "jni.o").read_bytes()[18:20], "little") == 183  # the number of AArch64


def test_the_c_header_is_plain_c(tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is installed")
    (tmp_path / "app.c").write_text('#include "mobilemoe.h"\nint main(void) { return mm_default_options().threads; }\n')
    strict = ["-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    run("cc", *strict, f"-I{ROOT / 'native' / 'include'}", "-c", tmp_path / "app.c", "-o", tmp_path / "app.o")


@pytest.mark.runtimes
def test_the_whole_library_links_for_arm_in_less_than_a_megabyte(jdk, tmp_path):
    """By the app's own CMake file, against musl in place of Android's C library."""
    pytest.importorskip("ziglang")
    tools = Path(sys.executable).parent
    java = f"-DCMAKE_CXX_FLAGS=-I{jdk / 'include'} -I{jdk / 'include' / 'linux'}"
    toolchain = [f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'native' / 'zig.cmake'}", "-DZIG_TARGET=aarch64-linux-musl"]
    make = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", "-DCMAKE_SHARED_LINKER_FLAGS=-s"]
    run(tools / "cmake", *make, java, *toolchain, "-S", MAIN / "cpp", "-B", tmp_path)
    run(tools / "cmake", "--build", tmp_path, "--target", "mobilemoe_jni")
    library = (tmp_path / "libmobilemoe_jni.so").read_bytes()
    methods = re.findall(r"static native \w+ (\w+)\(", (MAIN / "java/org/mobilemoe/Engine.java").read_text())
    assert len(methods) == 7
    assert all(f"Java_org_mobilemoe_Engine_{name}\0".encode() in library for name in methods)
    assert len(library) < 1_000_000

"""Programs that are held to a rung see no other instructions, in threads and children too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HELD = ROOT / "loadtest" / "peers" / "held.sh"
PROBE = r"""
#include <cpuid.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void show(const char *where) {
    unsigned a, b, c, d;
    __cpuid_count(7, 0, a, b, c, d);
    printf("%s avx2=%u avx512f=%u vnni=%u", where, b >> 5 & 1, b >> 16 & 1, c >> 11 & 1);
    __cpuid_count(7, 1, a, b, c, d);
    printf(" avx_vnni=%u bf16=%u\n", a >> 4 & 1, a >> 5 & 1);
    fflush(stdout);
}
static void *in_thread(void *unused) { show("thread"); return unused; }
static void on_fault(int number) { printf("fault %d\n", number); fflush(stdout); _exit(9); }

int main(int count, char **arguments) {
    if (count > 1) { show("child"); return 0; }
    show("main");
    pthread_t thread;
    pthread_create(&thread, NULL, in_thread, NULL);
    pthread_join(thread, NULL);
    char command[4096];
    snprintf(command, sizeof command, "%s child", arguments[0]);
    if (system(command)) return 1;
    signal(SIGSEGV, on_fault);
    show("handled");
    *(volatile int *)8 = 1;
    return 0;
}
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64" or not shutil.which("cc"),
    reason="Linux on x86-64 with a C compiler",
)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.c").write_text(PROBE)
    command = ["cc", "-o", folder / "probe", folder / "probe.c", "-lpthread"]
    subprocess.run(command, check=True)
    return folder / "probe"


def held(rung: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HELD, rung, *command],
        env=os.environ | {"PEERS_DIR": str(Path(command[0]).parent)},
        capture_output=True,
        text=True,
    )


def features(output: str) -> dict[str, dict[str, int]]:
    lines = [line.split() for line in output.splitlines() if "=" in line]
    return {
        where: {name: int(value) for name, _, value in (pair.partition("=") for pair in pairs)}
        for where, *pairs in lines
    }


def test_the_instructions_that_a_program_sees(probe: Path) -> None:
    native = held("native", probe)
    everywhere = features(native.stdout)
    assert set(everywhere) == {"main", "thread", "child", "handled"}
    has = everywhere["main"]
    for rung, expected in (
        ("x86-64-v3", has | {"avx512f": 0, "vnni": 0, "avx_vnni": 0, "bf16": 0}),
        ("x86-64-v3-vnni", has | {"avx512f": 0, "vnni": 0, "bf16": 0}),
        ("x86-64-v4", has | {"vnni": 0, "avx_vnni": 0, "bf16": 0}),
        ("x86-64-v4-vnni", has | {"avx_vnni": 0, "bf16": 0}),
        ("x86-64-v4-bf16", has | {"avx_vnni": 0}),
    ):
        done = held(rung, probe)
        if "cannot trap CPUID" in done.stderr:
            assert done.returncode == 3
            pytest.skip("this machine cannot trap CPUID")
        assert features(done.stdout) == dict.fromkeys(everywhere, expected), rung
        # The program's own handler still gets what was no CPUID.
        assert "fault 11" in done.stdout
        assert done.returncode == native.returncode == 9


def test_a_rung_that_is_not_known(probe: Path) -> None:
    done = held("x86-64-v9", probe)
    assert done.returncode == 3
    assert "HOLD_CPUID=x86-64-v9 is not a known rung" in done.stderr

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from lissome.machine.identity import (
    Cores,
    Host,
    allowed_cpus,
    identify,
    last_level_cache,
    parse_cpuinfo,
    parse_sysctl,
    processor,
    rounded_ram,
    usable_cores,
    usable_ram,
)


def found(tree, machines, name):
    host, files = machines[name]
    return identify(tree(files), host)


def test_a_xeon_with_amx(tree, machines):
    machine = found(tree, machines, "xeon")
    assert machine.cpu == "Intel Xeon Platinum 8481C"
    assert {"AVX2", "AVX-512F", "AVX512-VNNI", "AVX-VNNI", "AVX512-BF16", "AMX-TILE", "AMX-INT8", "AMX-BF16"} <= set(machine.isa)
    assert machine.cores == 8
    assert machine.ram_mb == round(32_800_000 * 1024 / 1e6)
    assert re.fullmatch(r"intel-xeon-platinum-8481c-8c-32gib-[0-9a-f]{8}", machine.fingerprint)


def test_a_zen_4_has_vnni_and_bf16_but_no_amx(tree, machines):
    machine = found(tree, machines, "zen4")
    assert machine.cpu == "AMD EPYC 9654"
    assert {"AVX512-VNNI", "AVX512-BF16"} <= set(machine.isa)
    assert not [name for name in machine.isa if name.startswith("AMX") or name == "AVX-VNNI"]
    assert machine.fingerprint.startswith("amd-epyc-9654-2c-24gib-")


def test_a_raspberry_pi_4_is_named_by_board_and_core(tree, machines):
    machine = found(tree, machines, "pi4")
    assert machine.cpu == "Raspberry Pi 4 Model B Rev 1.4 (Cortex-A72)"
    assert machine.isa == ("NEON",)
    assert machine.cores == 4
    assert "4gib" in machine.fingerprint


def test_a_mac_is_read_from_sysctl(tmp_path):
    from .conftest import SYSCTL_M2

    host = Host("Darwin", "arm64", "arm", 8, 17179869184, parse_sysctl(SYSCTL_M2))
    machine = identify(tmp_path, host)
    assert machine.cpu == "Apple M2"
    assert set(machine.isa) == {"NEON", "fp16", "dotprod", "i8mm", "bf16"}
    assert (machine.cores, machine.ram_mb) == (8, 17180)
    assert machine.fingerprint.startswith("apple-m2-8c-16gib-")
    assert last_level_cache(tmp_path, host) == 16 << 20


def test_windows_has_a_name_and_no_isa(tmp_path):
    machine = identify(tmp_path, Host("Windows", "AMD64", "Intel64 Family 6 Model 151", 12, 16 << 30))
    assert machine.cpu == "Intel64 Family 6 Model 151"
    assert (machine.cores, machine.isa) == (12, ())


def test_a_container_has_its_quota_and_its_memory(tree, machines):
    host, files = machines["container"]
    root = tree(files)
    cores = usable_cores(root, host)
    assert (cores.present, cores.allowed, cores.quota, cores.usable) == (8, 8, 1.5, 1)
    assert cores.sentence == "1 usable core of 8: a CPU quota of 1.5 holds"
    assert usable_ram(root, host) == 2 << 30
    assert "-1c-2gib-" in identify(root, host).fingerprint


def test_affinity_limits_the_cores(tree, machines):
    host, files = machines["xeon"]
    root = tree({**files, "proc/self/status": "Cpus_allowed_list:\t0-1,4,6-7\n"})
    assert allowed_cpus(root) == (0, 1, 4, 6, 7)
    assert identify(root, host).cores == 5
    assert usable_cores(root, host).sentence == "5 usable cores of 8: the process may run on no others"


@pytest.mark.parametrize(("quota", "usable"), [(None, 4), (0.5, 1), (1.0, 1), (1.99, 1), (2.0, 2), (64.0, 4)])
def test_usable_cores_can_all_run_at_full_speed(quota, usable):
    assert Cores(8, 4, quota).usable == usable


def test_serial_number_host_name_and_clock_do_not_enter_the_fingerprint(tree, machines):
    from .conftest import pi4

    host, files = machines["pi4"]
    first = identify(tree(files), host)
    second = identify(tree({**files, "proc/cpuinfo": pi4("ffffffff00000000"), "proc/sys/kernel/hostname": "other\n"}), host)
    assert first.fingerprint == second.fingerprint
    assert "abcdef01" not in first.model_dump_json()


def test_what_counts_changes_the_fingerprint(tree, machines):
    host, files = machines["xeon"]
    seen = {identify(tree(files), host).fingerprint}
    changes = [
        {"proc/cpuinfo": files["proc/cpuinfo"].replace("amx_int8", "")},
        {"proc/cpuinfo": files["proc/cpuinfo"].replace("model\t\t: 143", "model\t\t: 207")},
        {"proc/self/status": "Cpus_allowed_list:\t0-3\n"},
        {"proc/meminfo": "MemTotal: 65600000 kB\n"},
    ]
    for change in changes:
        seen.add(identify(tree({**files, **change}), host).fingerprint)
    seen.add(identify(tree(files), Host("Linux", "i686")).fingerprint)
    assert len(seen) == len(changes) + 2


def test_a_few_megabytes_of_ram_do_not_change_the_fingerprint(tree, machines):
    host, files = machines["xeon"]
    a = identify(tree({**files, "proc/meminfo": "MemTotal: 32800000 kB\n"}), host)
    b = identify(tree({**files, "proc/meminfo": "MemTotal: 32770112 kB\n"}), host)
    assert a.fingerprint == b.fingerprint


@pytest.mark.parametrize(("ram", "text"), [(512 << 20, "512mib"), (500 << 20, "512mib"), (2 << 30, "2gib"), (int(23.5 * 2**30), "24gib"), (0, "0mib")])
def test_rounded_ram(ram, text):
    assert rounded_ram(ram) == text


def test_instruction_sets_that_only_some_cores_have_do_not_count():
    text = "processor: 0\nflags: avx2 avx512f\n\nprocessor: 1\nflags: avx2\n"
    assert parse_cpuinfo(text, Host("Linux", "x86_64")).isa == ("AVX2",)


def test_a_newer_arm_server_and_mixed_cores():
    server = "processor: 0\nFeatures: fp asimd asimdhp asimddp sve i8mm bf16 sve2\nCPU implementer: 0x41\nCPU part: 0xd4f\n"
    assert parse_cpuinfo(server, Host("Linux", "aarch64")).isa == ("NEON", "fp16", "dotprod", "i8mm", "bf16", "SVE", "SVE2")
    mixed = "processor: 0\nFeatures: asimd\nCPU implementer: 0x41\nCPU part: 0xd05\n\nprocessor: 1\nFeatures: asimd\nCPU implementer: 0x41\nCPU part: 0xd0b\n"
    assert parse_cpuinfo(mixed, Host("Linux", "aarch64")).name == "Cortex-A55 + Cortex-A76"


def test_an_empty_tree_still_gives_an_answer(tmp_path):
    machine = identify(tmp_path, Host("Linux", "riscv64", cpus=3))
    assert (machine.cpu, machine.cores, machine.isa, machine.ram_mb) == ("riscv64", 3, (), 0)


def test_largest_cache(tree, machines):
    host, _ = machines["zen4"]
    caches = {f"sys/devices/system/cpu/cpu0/cache/index{i}/size": size for i, size in enumerate(("32K", "32K", "1024K", "32M", "odd"))}
    assert last_level_cache(tree(caches), host) == 32 << 20


def test_this_machine_in_its_own_process_without_torch():
    code = "import sys; from lissome.machine.identity import identify; print(identify().fingerprint); print('torch' in sys.modules, 'numpy' in sys.modules)"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert lines[0] == identify().fingerprint
    assert lines[1] == "False False"
    assert identify().cores >= 1
    assert processor().count >= identify().cores

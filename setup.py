"""What is built to machine code; everything else about the package stands in setup.cfg.

Five extensions are written in C. With FAIRVISOR_COMPILE=1, as in wheels, the image and `make`, the Python modules that
every decision and every proxied request passes through are also compiled, by mypyc: the same source, about twice as
fast; and so is the compiler of bundles, whose time requests share during a reload. Without it they run as they are,
which is what one wants while changing them.
"""

import os
import sysconfig

from setuptools import Extension, setup

flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"]
# What makes a mistake in the C source harder to use: frames and calls of libc are checked, jumps land where they may,
# and nothing that was resolved at the start can be written afterwards. GCC 10 and Clang 11 know all of it.
HARDENING = [
    "-fstack-protector-strong",
    "-fstack-clash-protection",
    "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=3",
]
BRANCHES = {"x86_64": ["-fcf-protection"], "aarch64": ["-mbranch-protection=standard"]}
LINKED = ["-Wl,-z,relro,-z,now"]
if os.environ.get("FAIRVISOR_WERROR"):
    flags.append("-Werror")
if os.environ.get("FAIRVISOR_SANITIZE"):
    # The sanitizers look for the mistake itself, and do not see into the checked calls.
    flags += [f"-fsanitize={os.environ['FAIRVISOR_SANITIZE']}", "-fno-omit-frame-pointer", "-g"]
else:
    flags += HARDENING + BRANCHES.get(sysconfig.get_platform().rpartition("-")[2], [])

DEPENDS = {
    "fairvisor.counters._table": ["fairvisor/counters/_slots.h"],
    "fairvisor.http._head": ["fairvisor/http/_plain.h"],
    "fairvisor.llm._shape": [],
    "fairvisor.llm._simple_word": [],
    "fairvisor.proxy._heads": ["fairvisor/http/_plain.h"],
}

COMPILED = [
    "fairvisor/audit.py",
    "fairvisor/bounded_cache.py",
    "fairvisor/bundle/compile.py",
    "fairvisor/cli/trace.py",  # its limits are limits: a compiled class has compiled subclasses only
    "fairvisor/clock.py",
    "fairvisor/context.py",
    "fairvisor/decision.py",
    "fairvisor/descriptors.py",
    "fairvisor/engine.py",
    "fairvisor/http/arriving.py",
    "fairvisor/http/channel.py",
    "fairvisor/http/connection.py",
    "fairvisor/http/gateways.py",
    "fairvisor/http/hub.py",
    "fairvisor/http/kept.py",
    "fairvisor/http/outbox.py",
    "fairvisor/http/partial_head.py",
    "fairvisor/http/pieces.py",
    "fairvisor/http/request.py",
    "fairvisor/http/service.py",
    "fairvisor/http/wire.py",
    "fairvisor/identity/addresses.py",
    "fairvisor/identity/networks.py",
    "fairvisor/identity/recent.py",
    "fairvisor/identity/sources.py",
    "fairvisor/identity/tokens.py",
    "fairvisor/llm/dialect.py",
    "fairvisor/llm/estimate.py",
    "fairvisor/llm/facts.py",
    "fairvisor/llm/fields.py",
    "fairvisor/llm/paths.py",
    "fairvisor/llm/request.py",
    "fairvisor/llm/reservation.py",
    "fairvisor/llm/usage.py",
    "fairvisor/metrics/counting.py",
    "fairvisor/proxy/account.py",
    "fairvisor/proxy/backends.py",
    "fairvisor/proxy/bodies.py",
    "fairvisor/proxy/events.py",
    "fairvisor/proxy/exchange.py",
    "fairvisor/proxy/front.py",
    "fairvisor/proxy/gate.py",
    "fairvisor/proxy/heads.py",
    "fairvisor/proxy/inbox.py",
    "fairvisor/proxy/link.py",
    "fairvisor/proxy/pace.py",
    "fairvisor/proxy/returning.py",
    "fairvisor/proxy/rewrite.py",
    "fairvisor/proxy/tunnel.py",
    "fairvisor/reading.py",
    "fairvisor/response.py",
    "fairvisor/route.py",
    "fairvisor/rules/breaker.py",
    "fairvisor/rules/budget.py",
    "fairvisor/rules/cost.py",
    "fairvisor/rules/keys.py",
    "fairvisor/rules/kill_switch.py",
    "fairvisor/rules/limit.py",
    "fairvisor/rules/llm_tokens.py",
    "fairvisor/rules/loop.py",
    "fairvisor/rules/token_bucket.py",
    "fairvisor/rules/unreadable.py",
    "fairvisor/top_keys.py",
]

extensions = [
    Extension(
        name,
        [f"{name.replace('.', '/')}.c"],
        depends=depends,
        extra_compile_args=flags,
        extra_link_args=[flag for flag in flags if flag.startswith("-fsanitize")],
    )
    for name, depends in DEPENDS.items()
]
if os.environ.get("FAIRVISOR_COMPILE"):
    from mypyc.build import mypycify

    # The types are checked by `make lint`; here the build's own environment lacks the packages we import.
    options = ["--config-file=", "--ignore-missing-imports", "--python-version=3.10"]
    extensions += mypycify([*options, *COMPILED], opt_level="2", debug_level="0", group_name="fairvisor")

for extension in extensions:
    extension.extra_link_args += LINKED
    extension.depends = [*extension.depends, "setup.py"]  # other flags are another build

setup(ext_modules=extensions)

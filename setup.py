"""Only the C extensions; everything else about the package stands in setup.cfg."""

import os

from setuptools import Extension, setup

flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"]
if os.environ.get("FAIRVISOR_WERROR"):
    flags.append("-Werror")
if os.environ.get("FAIRVISOR_SANITIZE"):
    flags += [f"-fsanitize={os.environ['FAIRVISOR_SANITIZE']}", "-fno-omit-frame-pointer", "-g"]

DEPENDS = {"fairvisor.counters._table": ["fairvisor/counters/_slots.h"], "fairvisor.http._head": []}

setup(
    ext_modules=[
        Extension(
            name,
            [f"{name.replace('.', '/')}.c"],
            depends=depends,
            extra_compile_args=flags,
            extra_link_args=[flag for flag in flags if flag.startswith("-fsanitize")],
        )
        for name, depends in DEPENDS.items()
    ]
)

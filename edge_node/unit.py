"""The systemd unit of an edge node: it may read its settings, write its own two folders, and use the network.

Pure text. Three usual measures are missing on purpose: MemoryDenyWriteExecute, because PyTorch and ONNX Runtime
generate machine code; ProcSubset=pid, because they read the processor's abilities from /proc; and PrivateUsers, because
kernels of gateways are built without user namespaces, and then the service would not start.
"""

from pathlib import Path

NAME = "alignfed-edge.service"
STATE, CACHE = Path("/var/lib/alignfed"), Path("/var/cache/alignfed")
NOT_TO_BE_SEEN = (Path("/home"), Path("/root"), Path("/run/user"), Path("/tmp"), Path("/var/tmp"))

_UNIT = """\
[Unit]
Description=alignfed edge node
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
ExecStart={python} -m alignfed edge --config {config}
WorkingDirectory={state}
Environment=ALIGNFED_CACHE={cache} HOME={state} OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
# 2: the settings are wrong; 3: the federation cannot take this node. Trying again would not change that.
Restart=on-failure
RestartPreventExitStatus=2 3
RestartSec=5
TimeoutStopSec=10
# the kernel may take what trains; the node lives on and says so
OOMPolicy=continue
Nice=5

DynamicUser=yes
User=alignfed
StateDirectory=alignfed
StateDirectoryMode=0700
CacheDirectory=alignfed
UMask=0077

CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
LockPersonality=yes
PrivateDevices=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged

[Install]
WantedBy=multi-user.target
"""


def unit(python: Path, config: Path) -> str:
    """The unit that runs a node with this Python and this settings file; ValueError for paths systemd cannot take."""
    for path in (python, config):
        if not path.is_absolute() or any(mark in str(path) for mark in " \t\n\"'\\%$"):
            raise ValueError(f"systemd needs an absolute path without spaces, quotes, % and $ here: {path}")
    return _UNIT.format(python=python, config=config, state=STATE, cache=CACHE)


def hidden(path: Path) -> Path | None:
    """The folder above `path` that the unit does not let its process see; None where it sees the path."""
    return next((folder for folder in NOT_TO_BE_SEEN if path.is_relative_to(folder)), None)

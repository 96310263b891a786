"""The systemd unit of an edge node: it may read its settings, write its own two folders, and use the network.

Pure text. Three usual measures are missing on purpose: MemoryDenyWriteExecute, because PyTorch and ONNX Runtime
generate machine code; ProcSubset=pid, because they read the processor's abilities from /proc; and PrivateUsers, because
kernels of gateways are built without user namespaces, and then the service would not start.
"""

from pathlib import Path

from broker.bundle import CA, CLIENT_CERT, CLIENT_KEY, FEDERATION_FILE, SIGNING_KEY

NAME = "alignfed-edge.service"
STATE, CACHE = Path("/var/lib/alignfed"), Path("/var/cache/alignfed")
CREDENTIALS = Path("/run/credentials") / NAME
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
{keys}# 2: the settings are wrong; 3: the federation cannot take this node. Trying again would not change that.
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


def unit(python: Path, config: Path, keys: Path | None = None) -> str:
    """The unit that runs a node with this Python and this settings file; ValueError for paths systemd cannot take.

    `keys` is a bundle that only root may read: systemd hands it to the service.
    """
    for path in (python, config, *([] if keys is None else [keys])):
        if not path.is_absolute() or any(mark in str(path) for mark in " \t\n\"'\\%$"):
            raise ValueError(f"systemd needs an absolute path without spaces, quotes, % and $ here: {path}")
    return _UNIT.format(python=python, config=config, state=STATE, cache=CACHE, keys=_handed_over(keys))


def _handed_over(keys: Path | None) -> str:
    """The lines by which the service gets the files of a bundle; they are read at each start."""
    if keys is None:
        return ""
    files = (FEDERATION_FILE, CA, CLIENT_CERT, CLIENT_KEY, SIGNING_KEY)
    lines = [f"LoadCredential={file}:{keys / file}" for file in files]
    return "\n".join([*lines, f"Environment=ALIGNFED_SECURITY__KEYS={CREDENTIALS}\n"])


def hidden(path: Path) -> Path | None:
    """The folder above `path` that the unit does not let its process see; None where it sees the path."""
    return next((folder for folder in NOT_TO_BE_SEEN if path.is_relative_to(folder)), None)

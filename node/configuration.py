"""Settings of one node: flag > environment (`BFLNODE_P2P__PORT`) > `config.toml` > default.

Only what a node may choose by itself; what all nodes must agree on is in the genesis.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from .home import Home, HomeError

Port = Annotated[int, Field(ge=0, le=65_535)]

MAX_NAME_SHOWN = 80
"""Characters of an unknown setting's name that an error repeats."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PeerToPeer(_Section):
    """Where this node listens for peers and whom it dials."""

    host: str = "127.0.0.1"
    port: Port = 26656
    external_host: str = ""
    """Address that peers dial when it is not `host` (behind NAT, or when listening on 0.0.0.0)."""
    persistent_peers: tuple[str, ...] = ()
    """Full multiaddrs of peers to which a connection is kept."""
    bootstrap: tuple[str, ...] = ()
    """Full multiaddrs that are dialled as long as there are no peers."""
    mdns: bool = False
    """Announce this node on the local network, and connect to the nodes of its chain that are announced there."""
    private_key_file: str = ""
    """Key of a private network: 64 hexadecimal digits, the same at all its nodes; an open network when empty."""
    max_peers: Annotated[int, Field(ge=1, le=256)] = 64
    max_connections_per_address: Annotated[int, Field(ge=1, le=1024)] = 64
    """Inbound connections of one IP address; the machines of an organisation may share one."""


class RemoteProcedureCalls(_Section):
    """Where the command line reaches this node."""

    host: str = "127.0.0.1"
    port: Port = 26657


class Signing(_Section):
    """How this node's key signs votes."""

    new_log: Literal["wait", "vote"] = "wait"
    """With an empty signer's log on a chain that has blocks: wait for the next block before voting, or vote at once."""


class Training(_Section):
    """Local training: whether, on what, and with which device."""

    enabled: bool = True
    shard: str = ""
    """The node's own data as .npz; `data/shard.npz` in the home when empty."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    control: bool = True
    """Also train a model on the own data alone each round, to compare with what the network gives."""


class Storage(_Section):
    """What stays on this disk; the chain itself always does."""

    keep_rounds: Annotated[int, Field(ge=0, le=1_000_000)] = 50
    """Settled learning rounds of each task whose models and journal entries stay, 0 for all. 50 are a whole task of the
    paper: it can be executed again from the first round on, and a node that runs for years fills no disk."""
    blob_quota: Annotated[ByteSize, Field(ge=0)] = ByteSize(0)
    """Most bytes of models, such as "10GiB"; 0 for as many as the disk holds."""


class Synchronisation(_Section):
    """How a new node gets the state, and what this one keeps for others who do."""

    snapshot_interval: Annotated[int, Field(ge=0)] = 1000
    """Heights between snapshots of the state, 0 for none."""
    snapshots_kept: Annotated[int, Field(ge=1, le=16)] = 2
    """The last ones that stay; that which this node's own chain starts from stays anyway."""
    state_sync: str = ""
    """HEIGHT:HASH of a block to trust: a node without a chain starts from a peer's snapshot of it or of a later one."""
    state_sync_peers: tuple[str, ...] = ()
    """Peers for that only, besides `p2p.persistent_peers`."""


class Configuration(BaseSettings):
    """All settings of a node."""

    model_config = SettingsConfigDict(
        env_prefix="BFLNODE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    name: str = "node"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    p2p: PeerToPeer = PeerToPeer()
    rpc: RemoteProcedureCalls = RemoteProcedureCalls()
    training: Training = Training()
    signing: Signing = Signing()
    storage: Storage = Storage()
    sync: Synchronisation = Synchronisation()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's signature
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags first, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_configuration(home: Home, flags: dict[str, Any] | None = None) -> Configuration:
    """Read the settings of a home.

    Args:
        home: an initialised home; a missing `config.toml` means all defaults.
        flags: nested overrides from the command line, e.g. `{"p2p": {"port": 0}}`.

    Raises:
        HomeError: the file is not TOML, or a setting is unknown or out of range.
    """
    file = home.configuration_file
    if file.exists() and not file.is_file():
        raise HomeError(f"{file} is not a file: move it away, or put a file of settings in its place")

    class FromFile(Configuration):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        return FromFile(**(flags or {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = _shown(".".join(str(part) for part in first["loc"]))
        what = "there is no such setting, correct or remove it" if first["type"] == "extra_forbidden" else first["msg"]
        raise HomeError(f"setting {where or 'value'}: {what} (flags, BFLNODE_* or {file})") from error
    except ValueError as error:
        raise HomeError(f"{file} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise HomeError(f"{file} is not a file of settings: its brackets are nested too deep") from error
    except OSError as error:
        raise HomeError(f"cannot read the settings {file}: {error.strerror}") from error


def _shown(name: str) -> str:
    """A setting's name as written, unless it would fill or rewrite a terminal."""
    return name if len(name) <= MAX_NAME_SHOWN and name.isprintable() else ascii(name[:MAX_NAME_SHOWN])


def shard_path(home: Home, configuration: Configuration) -> Path:
    """Where the node's own data is."""
    return Path(configuration.training.shard).expanduser() if configuration.training.shard else home.shard

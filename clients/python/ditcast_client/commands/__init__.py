"""The client's own commands, by name."""

from collections.abc import Mapping
from typing import Final

from ditcast_client.commands.adapters import Adapters
from ditcast_client.commands.cancel import Cancel
from ditcast_client.commands.command import Command
from ditcast_client.commands.configure import Configure
from ditcast_client.commands.generate import Generate
from ditcast_client.commands.health import Health
from ditcast_client.commands.info import Info
from ditcast_client.commands.listing import List
from ditcast_client.commands.replay import ReplayCommand
from ditcast_client.commands.tune import Tune
from ditcast_client.commands.watch import Watch

COMMANDS: Final[Mapping[str, Command]] = {
    "generate": Generate(),
    "info": Info(),
    "health": Health(),
    "list": List(),
    "watch": Watch(),
    "replay": ReplayCommand(),
    "cancel": Cancel(),
    "configure": Configure(),
    "adapters": Adapters(),
    "tune": Tune(),
}

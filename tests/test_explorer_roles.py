"""Roles below the table of latents: shown if they were found, or the command that finds them."""

import sys
from pathlib import Path

from streamlit.testing.v1 import AppTest

from saelab.activation_functions import TopK
from saelab.probing import Roles, UnitRole, save_roles
from saelab.sae import SAE

APP = Path(__file__).parent.parent / "app"
SCRIPT = f"""
import sys
sys.path.insert(0, {str(APP)!r})
from explorer import role_panel
role_panel.show("dictionary")
"""
HOSTILE = "<img/src=x/onerror=window.hacked=1>"


def planted() -> Roles:
    """A detector that lowers its own trigger, a positional latent, a dead one."""

    def unit(place: int, role: str, density: float, **more: object) -> UnitRole:
        usual = {"triggers": (), "trigger_effect": None, "information": 0.0, "pattern": ""}
        known = {**usual, "n_covering": 1, "density": density, "unit": place, "role": role}
        return UnitRole(**{**known, **more})  # type: ignore[arg-type]

    detector = unit(0, "token", 0.02, triggers=((7,),), trigger_effect=-0.5)
    first = unit(1, "positional", 0.5, information=0.3, pattern="one extreme")
    return Roles(units=[detector, first, unit(2, "dead", 0.0)], n_tokens=1234, n_positions=9)


def shown() -> tuple[str, AppTest]:
    test = AppTest.from_string(SCRIPT, default_timeout=60).run()
    assert not test.exception and not test.error
    return "\n".join(str(one.proto.body) for one in test.get("html")), test


def test_roles_are_shown_beside_shuffled_text_once_they_were_found(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "dictionary"
    SAE(8, 3, TopK(2), hook="blocks.1.hook_resid_post").save(folder)
    monkeypatch.setattr(sys, "argv", ["streamlit_app.py", str(tmp_path / "runs")])
    html, test = shown()
    assert "Nobody has looked for roles yet" in html
    assert "probes.neuron_roles" in test.code[0].value
    save_roles(folder / "roles.json", "a place", planted(), planted(), lambda _: HOSTILE)
    html, test = shown()
    assert "on shuffled text" in html and "1,234 tokens at a place" in html
    assert "1 of 1 detectors lower the logits of their own triggers" in html
    assert "latent=0" in html and "-0.50" in html
    assert HOSTILE not in html and "&lt;img" in html
    test.session_state["role"] = "positional"
    test.run()
    html = "\n".join(str(one.proto.body) for one in test.get("html"))
    assert "one extreme, 0.30 nats" in html and "latent=1" in html

"""The page: a bar, the panel on the left, the views, and the results on the right.

Only widgets and the names of the state they are bound to; what a click does is `session`'s affair.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trame.ui.vuetify3 import VAppLayout
from trame.widgets import client, html
from trame.widgets import vuetify3 as v3
from web import OPEN, RESULT

TITLE = "PGPSAM Segment"
LAYOUTS = {
    "Four views": "mdi-view-grid-outline",
    "Axial and 3D": "mdi-view-split-vertical",
    "Axial": "mdi-square-outline",
    "3D": "mdi-cube-outline",
}
_COLORS = {
    "background": "#0e131a",
    "surface": "#161d27",
    "primary": "#4aa3ff",
    "on-primary": "#06121f",
    "success": "#4cc38a",
    "warning": "#e5b454",
    "error": "#f2604d",
}
_THEME = {"theme": {"defaultTheme": "night", "themes": {"night": {"dark": True, "colors": _COLORS}}}}
_WORKING = "engine === 'working'"
_OPEN_HELP = "Open files, or all files of a DICOM series"
_SEND = f"""
    opening = true;
    window.fetch('{OPEN}', {{method: 'POST', body: new window.FormData($event.target.form)}})
      .then((answer) => answer.ok, () => false)
      .then((ok) => {{
        if (!ok) error = 'The file could not be opened: see what the program has printed';
        opening = false;
        $event.target.form.reset();
      }})
"""


class Page:
    """Builds the page.

    Args:
        server: trame's.
        session: what is done at a click: see `session.Session`.
        views: the views, for their grid.
    """

    def __init__(self, server: Any, session: Any, views: Any) -> None:
        self._session, self._views = session, views
        server.state.trame__title = TITLE
        server.state.client_only("opening")
        with VAppLayout(server, vuetify_config=_THEME) as self.layout:
            client.Style(Path(__file__).with_name("page.css").read_text(encoding="utf-8"))
            self._bar()
            with v3.VNavigationDrawer(
                v_model=("panel_open",), permanent=True, location="left", width=336, color="surface", id="panel"
            ):
                self._input()
                self._choices()
                self._run()
                self._log()
            with v3.VNavigationDrawer(
                v_model=("results_open",),
                permanent=True,
                location="right",
                width=356,
                color="surface",
                v_if="has_result",
                id="results",
            ):
                self._shown()
                self._figures()
                self._review()
            with v3.VMain(style="height: 100vh"):
                views.layouts.initialize_layout_grid(self.layout)

    def _bar(self) -> None:
        with v3.VAppBar(height=48, flat=True, color="surface", border="b"):
            _fold("panel_open", "Input and organs", "mdi-dock-left", classes="ml-2")
            v3.VIcon("mdi-layers-triple-outline", color="primary", classes="ml-2 mr-3", size=22)
            with html.Div(classes="brand"):
                html.Span(TITLE)
                html.Small("Automatic organ segmentation")
            v3.VSpacer()
            html.Div("Not for clinical use", classes="note research mr-6")
            with html.Div(classes="note mr-5", id="engine"):
                html.Span(classes=("['dot', engine]",))
                html.Span(
                    "{{ {starting: 'Engine is starting', ready: 'Engine ready', working: 'Segmenting',"
                    " failed: 'Engine stopped'}[engine] }}"
                )
            with v3.VBtnToggle(
                v_model=("layout",), mandatory=True, density="compact", variant="text", divided=True, classes="mr-3"
            ):
                for name, icon in LAYOUTS.items():
                    v3.VBtn(icon=icon, value=name, size="36", raw_attrs=[f'title="{name}"', f'aria-label="{name}"'])
            _fold("results_open", "Results", "mdi-dock-right", classes="mr-2", v_if="has_result")

    def _input(self) -> None:
        with html.Div(classes="section"):
            html.H3("Input volume", id="volume-label")
            with html.Div(classes="d-flex align-center"):
                _select("volumes", "volume", disabled=_WORKING, placeholder="No volume", id="volume")
                with html.Form(), html.Label(classes="open", title=_OPEN_HELP):
                    v3.VIcon("mdi-file-plus-outline", v_if="!opening")
                    v3.VProgressCircular(v_else=True, indeterminate=True, size=24)
                    html.Input(
                        type="file",
                        name="files",
                        change=_SEND,
                        disabled=("opening",),
                        raw_attrs=["multiple", f'aria-label="{_OPEN_HELP}"'],
                    )
            html.Div("{{ volume_note }}", classes="note", id="volume-note")

    def _choices(self) -> None:
        with html.Div(classes="section"):
            html.H3("Model", id="model-label")
            _select("models", "model", disabled=_WORKING, placeholder="Waiting for the engine", id="model")
            html.Div("{{ model_note }}", classes="note", v_if="model_note")
        with html.Div(classes="section"):
            with html.Div(classes="d-flex align-center mb-1"):
                html.H3("Organs", classes="mb-0")
                html.Span("{{ chosen.length }} of {{ organs.length }}", classes="note mt-0 ml-2", id="organ-count")
                v3.VSpacer()
                for text, click in (("All", "chosen = organs.map((o) => o.name)"), ("None", "chosen = []")):
                    v3.VBtn(text, size="x-small", variant="text", click=click, disabled=(_WORKING,), id=f"tick-{text}")
            with html.Div(classes="organs"), html.Label(v_for="o in organs", key="o.name", classes="organ"):
                html.Input(
                    type="checkbox",
                    value=("o.name",),
                    checked=("chosen.includes(o.name)",),
                    disabled=(_WORKING,),
                    change="chosen = $event.target.checked"
                    " ? [...chosen, o.name] : chosen.filter((name) => name !== o.name)",
                )
                html.Span(classes="swatch", style=("{background: o.css}",))
                html.Span("{{ o.name }}")
        with html.Div(classes="section"):
            html.H3("Device", id="device-label")
            _select("devices", "device", disabled=_WORKING, id="device")
            html.Div("{{ device_note }}", classes="note", v_if="device_note", id="device-note")

    def _run(self) -> None:
        session = self._session
        with html.Div(classes="section"):
            v3.VBtn(
                "Auto-segment",
                v_if=f"!({_WORKING})",
                id="run",
                block=True,
                color="primary",
                prepend_icon="mdi-auto-fix",
                disabled=("engine !== 'ready' || !volume || !model || !chosen.length",),
                click=session.start,
            )
            v3.VBtn(
                "{{ cancelling ? 'Cancelling' : 'Cancel' }}",
                v_if=_WORKING,
                id="cancel",
                block=True,
                color="error",
                variant="tonal",
                prepend_icon="mdi-close",
                disabled=("cancelling",),
                click=session.cancel,
            )
            with html.Div(v_if=_WORKING, id="progress", classes="mt-3"):
                # Nothing moves by itself here: where a browser has no GPU, that takes a core from the engine.
                v3.VProgressLinear(model_value=("percent",), color="primary", height=6, rounded=True)
                with html.Div(classes="note mt-2"):
                    html.Span("{{ stage }}", id="stage")
                    html.Span(" ({{ spent }})", v_if="!known && spent", id="spent")
            with v3.VAlert(
                v_if="error || engine === 'failed'",
                type="error",
                variant="tonal",
                density="compact",
                classes="mt-3",
                id="error",
            ):
                html.Div("{{ error }}")
                v3.VBtn("Try again", v_if="engine === 'failed'", size="small", variant="tonal", click=session.greet)

    def _log(self) -> None:
        with html.Div(classes="section", style="border-bottom: 0"):
            with html.Button(
                type="button",
                classes="log-head",
                click="log_open = !log_open",
                raw_attrs=[':aria-expanded="log_open"'],
                id="log",
            ):
                html.H3("Log", classes="mb-0")
                v3.VIcon("{{ log_open ? 'mdi-chevron-up' : 'mdi-chevron-down' }}", size=16, classes="ml-1")
                html.Span(
                    "{{ log.length ? log[log.length - 1] : '' }}",
                    v_if="!log_open",
                    classes="note mt-0 ml-2 text-truncate",
                )
            html.Div("{{ log.join('\\n') }}", v_if="log_open", classes="log mt-2", id="log-lines")

    def _shown(self) -> None:
        with html.Div(classes="section"):
            html.H3("Show")
            with v3.VBtnToggle(
                v_model=("show",),
                mandatory=True,
                density="compact",
                variant="outlined",
                divided=True,
                color="primary",
                id="show",
            ):
                for value, text in (("masks", "Masks"), ("both", "Both"), ("prompts", "Prompts")):
                    v3.VBtn(text, value=value, size="small", id=f"show-{value}")
            with html.Div(classes="d-flex mt-2"):
                for name, text in (("confidence", "Confidence"), ("show_3d", "Show 3D")):
                    v3.VSwitch(
                        v_model=(name,),
                        label=text,
                        color="primary",
                        density="compact",
                        hide_details=True,
                        classes="mr-5",
                        id=f"switch-{name}",
                    )
            with html.Div(classes="d-flex mt-2", style="gap: 6px"):
                v3.VBtn(
                    "Download",
                    size="small",
                    variant="tonal",
                    prepend_icon="mdi-download",
                    href=RESULT,
                    raw_attrs=['download title="The organs as segments, for Slicer and others (.seg.nrrd)"'],
                    id="download",
                )
                v3.VBtn(
                    "Undo the last run",
                    v_if="can_undo",
                    size="small",
                    variant="text",
                    prepend_icon="mdi-undo",
                    disabled=(_WORKING,),
                    click=self._session.undo,
                    id="undo",
                )

    def _figures(self) -> None:
        with html.Div(classes="section"):
            html.H3("Results")
            with html.Table(classes="figures", id="figures"):
                with html.Thead(), html.Tr():
                    for head in ("Organ", "mL", "HU", "Confidence"):
                        html.Th(head)
                with html.Tbody(), html.Tr(v_for="row in rows", key="row.organ"):
                    with html.Td(), html.Div(classes="organ-name"):
                        html.Span(classes="swatch", style=("{background: row.css}",))
                        html.Span("{{ row.organ }}{{ row.mark }}")
                    html.Td("not found", v_if="row.ml === null", colspan=3, classes="absent")
                    with v3.Template(v_else=True):
                        html.Td("{{ row.ml }}")
                        html.Td("{{ row.hu }}")
                        with html.Td(), v3.Template(v_if="row.percent !== null"):
                            with html.Span(classes="bar"):
                                html.Span(classes=("{low: row.percent < 80}",), style=("{width: row.percent + '%'}",))
                            html.Span("{{ row.percent }} %")
            html.Div("{{ run_note }}", classes="note", id="run-note")
            html.Div("† reaches the scan's end: a part of it may lie outside.", classes="note", v_if="cut_off")

    def _review(self) -> None:
        session = self._session
        with html.Div(classes="section", id="review"):
            html.H3("Slices to check")
            html.Div("{{ review_note }}", classes="note mt-0", id="review-note")
            with html.Div(v_if="review.length"):
                v3.VProgressLinear(
                    model_value=("review_percent",), color="success", height=4, rounded=True, classes="mt-2"
                )
                with html.Div(classes="d-flex mt-3", style="gap: 6px"):
                    _small_button("Previous", "mdi-chevron-left", (session.step, "[-1]"), id="review-previous")
                    _small_button("Next", "mdi-chevron-right", (session.step, "[1]"), id="review-next")
                    _small_button(
                        "{{ review_here === 'checked' ? 'Not checked' : 'Mark as checked' }}",
                        "mdi-check",
                        session.check,
                        id="review-mark",
                        disabled=("!review_here",),
                    )
                with (
                    html.Div(classes="places", title="Counted from 1 at the file's first slice"),
                    html.Button(
                        type="button",
                        v_for="(item, n) in review",
                        key="n",
                        classes=("['place', {current: item.current, checked: item.checked}]",),
                        click=(session.go, "[n]"),
                    ),
                ):
                    html.Span(classes="swatch", style=("{background: item.css}",))
                    html.Span("{{ item.organ }}")
                    html.Span("slice {{ item.slices }}", classes="slices")
                    html.Span("{{ item.percent }} %")
                    v3.VIcon("mdi-check", size=14, color="success", v_if="item.checked", classes="ml-2")


def _fold(name: str, text: str, icon: str, **more: Any) -> None:
    """A button that folds one of the drawers and opens it again."""
    attributes = [f'title="{text}"', f'aria-label="{text}"', f':aria-expanded="{name}"']
    v3.VBtn(icon=icon, variant="text", size="36", click=f"{name} = !{name}", raw_attrs=attributes, **more)


def _small_button(text: str, icon: str, click: Any, **more: Any) -> None:
    v3.VBtn(text, size="small", variant="tonal", prepend_icon=icon, click=click, **more)


def _select(items: str, chosen: str, disabled: str = "false", **more: Any) -> None:
    v3.VSelect(
        items=(items,),
        v_model=(chosen,),
        disabled=(disabled,),
        variant="outlined",
        density="compact",
        hide_details=True,
        **more,
    )

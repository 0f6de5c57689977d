"""The playground as a local page, with Gradio (the `web` extra). It asks nothing of any other machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neurontune_peft.playground.answered import Answered, TriggerState
from neurontune_peft.playground.session import Playground
from neurontune_peft.report.adapter import layer_of

if TYPE_CHECKING:
    import gradio

NO_ATTACK, NO_PRESET = "no attack", "as set below"
MOST_NEURONS = 12
BAR = 24  # characters of the longest bar
# What a page may load: only what this server sends. Gradio's own page needs inline scripts and styles.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'self'"
)


def layer_rows(answered: Answered) -> list[list[str]]:
    """A bar for each layer: the sum of what scaling adds to its neurons."""
    sums: dict[str, float] = {}
    for site, change in answered.by_site.items():
        sums[layer_of(site)] = sums.get(layer_of(site), 0.0) + change
    top = max(sums.values(), default=0.0) or 1.0
    return [[layer, "█" * round(BAR * value / top), f"{value:.3f}"] for layer, value in sums.items()]


def neuron_rows(answered: Answered) -> list[list[str]]:
    """The neurons that fired most."""
    return [
        [layer_of(n.site), str(n.index), n.role, f"{n.activation:.3f}", f"{n.scale:.3f}", f"{n.change:+.3f}"]
        for n in answered.neurons[:MOST_NEURONS]
    ]


def trigger_text(state: TriggerState | None) -> str:
    """What the trigger said, for people."""
    return "No trigger: every request is scaled." if state is None else str(state)


def respond(
    playground: Playground, text: str, attack: str, strength: float, threshold: float | None, counts: Sequence[float]
) -> tuple[str, str, str, list[list[str]], list[list[str]]]:
    """
    Turn the dials as the page shows them, and answer.

    Args:
        playground ([`Playground`]): The model.
        text (`str`): The request; without one, nothing is answered.
        attack (`str`): Name of an attack, or `NO_ATTACK`.
        strength (`float`): The dial.
        threshold (`float`, *optional*): The trigger's threshold.
        counts (`Sequence[float]`): Neurons of each role, in the order of `playground.totals`.

    Returns:
        `tuple`: Base answer, tuned answer, what the trigger said, rows by layer, rows by neuron.
    """
    with playground.lock:
        playground.set_strength(strength)
        playground.set_counts(**{role: int(count) for role, count in zip(playground.totals, counts, strict=True)})
        if threshold is not None and playground.dynamic:
            # The slider shows three digits; left alone, it means the adapter's own threshold to the last bit.
            playground.set_threshold(None if threshold == round(playground.own_threshold, 3) else threshold)
        if not text.strip():
            return "", "", "", [], []
        prompt = playground.attacked(text, None if attack == NO_ATTACK else attack)
        base = playground.base(prompt)
        tuned, state = playground.tuned(prompt)
        answered = Answered(prompt, base, tuned, state, playground.neurons(prompt))
    return base, tuned, trigger_text(state), layer_rows(answered), neuron_rows(answered)


def preset_values(playground: Playground, name: str) -> list[float]:
    """Where the sliders stand for a preset: strength, threshold (dynamic adapters only), one count per role."""
    with playground.lock:
        if name != NO_PRESET:
            playground.use_preset(name)
        strength = next(iter(playground.strengths.values()))
        threshold = [] if playground.threshold is None else [playground.threshold]
        return [strength, *threshold, *(float(count) for count in playground.counts.values())]


def build(playground: Playground) -> gradio.Blocks:
    """
    The page.

    Args:
        playground ([`Playground`]): The model and its dials.

    Raises:
        ValueError: When Gradio is not installed.
    """
    gr = _gradio()
    own = playground.threshold

    def on_ask(text: str, attack: str, strength: float, *dials: float) -> Any:
        threshold, counts = (None, dials) if own is None else (dials[0], dials[1:])
        return respond(playground, text, attack, strength, threshold, counts)

    with gr.Blocks(analytics_enabled=False, title="neurontune_peft playground") as page:
        gr.Markdown("## neurontune_peft playground\nBase and tuned answers to one request; the dials act at once.")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                presets = gr.Dropdown([NO_PRESET, *playground.presets], value=NO_PRESET, label="Preset")
                strength = gr.Slider(
                    0, 3, value=1, step=0.05, label="Strength", info="0 is the base model, 1 the adapter as trained"
                )
                dials = [strength]
                if own is not None:
                    low, high = round(own - 5, 1), round(own + 5, 1)
                    dials.append(
                        gr.Slider(low, high, value=round(own, 3), step=0.001, label="Threshold of the trigger")
                    )
                dials += [
                    gr.Slider(0, total, value=total, step=1, label=f"Neurons of role {role}")
                    for role, total in playground.totals.items()
                ]
                attack = gr.Dropdown([NO_ATTACK, *playground.attacks], value=NO_ATTACK, label="Attack template")
            with gr.Column(scale=3):
                text = gr.Textbox(label="Request", lines=2, placeholder="Each request stands alone")
                ask = gr.Button("Answer", variant="primary")
                with gr.Row():
                    base = gr.Textbox(label="Base model", lines=6, interactive=False)
                    tuned = gr.Textbox(label="Tuned model", lines=6, interactive=False)
                trigger = gr.Textbox(label="Trigger", interactive=False)
                with gr.Row():
                    layers = gr.Dataframe(headers=["layer", "what scaling adds", "sum"], label="By layer")
                    neurons = gr.Dataframe(
                        headers=["layer", "index", "role", "activation", "scale", "change"],
                        label="Neurons that fired most",
                    )
        inputs, outputs = [text, attack, *dials], [base, tuned, trigger, layers, neurons]
        # One thing at a time: there is one model, with one set of dials.
        alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
        gr.on([ask.click, text.submit, attack.input], on_ask, inputs, outputs, api_name="answer", **alone)
        turned = [dial.input for dial in dials]
        gr.on(turned, on_ask, inputs, outputs, api_name="dial", trigger_mode="always_last", **alone)
        presets.input(lambda name: preset_values(playground, name), presets, dials, api_name="preset", **alone).then(
            on_ask, inputs, outputs, api_name="after_preset", **alone
        )
    return page


def launch(playground: Playground, *, host: str, port: int | None, block: bool = True) -> gradio.Blocks:
    """
    Serve the page.

    Args:
        playground ([`Playground`]): The model and its dials.
        host (`str`): Address to listen at.
        port (`int`, *optional*): Port; the first free one from 7860 on when left out.
        block (`bool`, *optional*, defaults to `True`): Serve until interrupted.

    Returns:
        `gradio.Blocks`: The page; `page.close()` ends it.
    """
    gr = _gradio()
    page = build(playground)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        enable_monitoring=False,
        footer_links=[],
        ssr_mode=False,
        # Gradio's own themes fetch their fonts.
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        app_kwargs={"middleware": [_policy()]},
    )
    if block:
        page.block_thread()
    return page


def _policy() -> Any:
    """A header on every answer of the server, by which browsers load nothing from elsewhere."""
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware

    async def add(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return Middleware(BaseHTTPMiddleware, dispatch=add)


def _gradio() -> Any:
    # Both are read when gradio is imported, and it would ask its makers for news.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise ValueError(
            "got no gradio; expected it for --web; install it with pip install neurontune-peft[web]"
        ) from error
    return gradio

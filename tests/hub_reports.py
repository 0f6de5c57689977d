"""Two reports on one prompt set, as if a base and a tuned model had been measured."""

from neurontune_peft.evaluation import Rate, Report


def fake_reports() -> tuple[Report, Report]:
    def report(attacks: int, borderline: int, perplexity: float) -> Report:
        return Report(
            plain_refusal=Rate(38, 40),
            plain_refusal_by_source={"a": Rate(38, 40)},
            attack_success={"prefix": Rate(attacks, 40), "role": Rate(attacks + 3, 40)},
            attack_success_train_templates={"prefix": Rate(attacks, 40)},
            held_out=("role",),
            benign_refusal=Rate(1, 40),
            borderline_refusal=Rate(borderline, 30),
            wrapped_benign_refusal=Rate(2, 40),
            perplexity=perplexity,
            kl=0.01,
            judge="format only",
            judge_limits="It sees openings only.",
            prompt_set="0123456789abcdef" * 4,
            options={"max_new_tokens": 32, "chat_template": None},
        )

    return report(31, 10, 12.5), report(7, 11, 12.75)

"""What a claims file may say: every misspelling is one sentence, and every file is whole."""

from typing import Any

import pytest
import yaml

from ln.suite.config import CONFIGS, names
from ln.suite.errors import Mistake
from ln.suite.judging.checks import KINDS
from ln.suite.judging.claims import claims_file, load_claims
from ln.suite.judging.curve_checks import drawn_curves
from ln.suite.showing.report import groups
from ln.suite.sweeps.wanted import wanted


def raw(group: str = "order_embeddings") -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / "claims" / f"{group}.yaml").read_text())


def changed(**fields: Any) -> dict[str, Any]:
    """Order embeddings' claims with one claim, that of speed, which has the given fields besides or instead."""
    document = raw()
    (claim,) = [claim for claim in document["claims"] if claim["id"] == "order_faster"]
    return {**document, "claims": [{**claim, **fields}]}


MISSPELT = [
    ({"at_mots": 0.05}, "at_mots is no key that is known; did you mean at_least"),
    ({"direction": "lowr"}, "direction is no key"),
    ({"metric": "valid_image_recal_sum"}, "did you mean valid_image_recall_sum"),
    ({"norm": "lyer"}, "lyer is no norm that is known; did you mean layer"),
    ({"baseline": "non"}, "did you mean none"),
    ({"experiment": "order_embedding"}, "did you mean order_embeddings"),
    ({"kind": "fastr"}, "did you mean faster"),
    ({"at": "lst"}, "did you mean last"),
    ({"target": "high"}, "target cannot be 'high'; it must be a number or null"),
    ({"target": "1e-4"}, "must be a number"),  # which YAML reads as text
    ({"expected": {"efect": 0.6, "spread": 0.1}}, "did you mean effect"),
    ({"expected": {"effect": 0.6}}, "spread is missing"),
    ({"kind": "value"}, "a check of kind value needs published, tolerance or within"),
    ({"experiment": "order_embeddings_sym", "norm": "layer"}, "is not run with norm layer, but with none"),
    ({"lower": False}, "lower is no key"),
    ({"checks": [{"mtric": "valid_image_r1"}]}, "did you mean metric"),
]


@pytest.mark.parametrize(("fields", "said"), MISSPELT)
def test_what_is_misspelt_is_one_sentence_that_names_the_nearest_known(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Mistake, match=said) as refused:
        claims_file(changed(**fields), "order_embeddings.yaml")
    assert str(refused.value).startswith("order_embeddings.yaml, claim order_faster: ") or "expected" in str(refused)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"metrics": {"valid_image_r1": "lowr"}}, "did you mean lower"),
        ({"runs": {"experiments": ["order_embedings"], "norms": [], "seeds": {}}}, "did you mean order_embeddings"),
        ({"runs": {"experiments": ["order_embeddings"], "norms": ["layr"], "seeds": {}}}, "did you mean layer"),
        ({"runs": {"experiment": []}}, "did you mean experiments"),
        ({"figure": {"panels": [{"metric": "valid_image_r2"}]}}, "did you mean valid_image_r"),
        ({"figure": {"panels": [{"metric": "valid_image_r1", "x": "stp"}]}}, "did you mean step"),
        ({"figure": {"panels": [{"metric": "valid_image_r1", "ylbel": ""}]}}, "did you mean ylabel"),
        ({"references": [{"label": "a", "of": ["valid_r1"], "value": 1.0}]}, "did you mean valid_image_r1"),
        ({"references": [{"label": "a", "of": ["valid_image_r1"]}]}, "either a value or a metric"),
        ({"titel": "a"}, "did you mean title"),
        ({"order": "first"}, "it must be a number"),
    ],
)
def test_the_rest_of_the_file_is_as_strict(place: dict[str, Any], said: str) -> None:
    with pytest.raises(Mistake, match=said):
        claims_file({**raw(), **place}, "order_embeddings.yaml")


def test_two_claims_of_one_name_are_refused() -> None:
    document = changed()
    with pytest.raises(Mistake, match="two claims are called order_faster"):
        claims_file({**document, "claims": document["claims"] * 2}, "order_embeddings.yaml")


def test_the_cells_of_a_row_are_claims_of_their_own() -> None:
    row = next(claim for claim in raw()["claims"] if claim["id"] == "order_caption_none")
    document = claims_file({**raw(), "claims": [row]}, "order_embeddings.yaml")
    assert [claim.id.removeprefix("order_caption_none_") for claim in document.claims] == [
        "r_1",
        "r_5",
        "r_10",
        "mean_rank",
    ]
    assert [claim.published for claim in document.claims] == ["46.6", "79.3", "89.1", "5.2"]
    assert [check.lower for check in document.checks] == [False, False, False, True]


@pytest.mark.parametrize("group", groups())
def test_every_claims_file_is_whole(group: str) -> None:
    document = load_claims(group)
    assert set(document.runs.experiments) <= set(names("experiment"))
    assert set(document.runs.seeds) == {"smoke", "laptop", "full"}
    assert set(wanted(group, "full").norms) == set(document.runs.experiments)
    for claim in document.claims:
        assert claim.sentence
        assert claim.source
        assert claim.checks or claim.needs
    for check in document.checks:
        assert check.kind in (*KINDS, "curve")
        if check.kind == "curve":
            assert check.norm in drawn_curves(check), f"no published curve for {check}"
        if check.kind in ("better", "faster") and "invariance" not in group and "seq_mnist" not in group:
            assert check.expected is not None, f"no power is planned for {check}"


def test_a_claim_that_needs_no_scale_is_measured_on_functions() -> None:
    """What training does to a network depends on the training, and is `seen` where that is not the paper's."""
    free = [check for group in groups() for check in load_claims(group).checks if check.scale_free]
    assert free
    assert all(check.metric.startswith("test_") and check.experiment == "invariance" for check in free)


def test_an_unknown_group_is_one_sentence() -> None:
    with pytest.raises(Mistake, match="choose one of"):
        load_claims("mnits")

"""The papers' printed figures, as they were copied."""

import pytest

from crossguard_jax.evals.published import CROSSGUARD, PRINTED, printed_results

MEANS = {  # as the paper prints them, beside the cells
    "LLaVA-1.5-7B": 57.01,
    "Qwen2.5-VL-7B": 17.53,
    "GPT-4o": 15.77,
    "Claude-3.5-Sonnet": 12.05,
    "LlavaGuard": 77.52,
    "Llama-Guard3-Vision": 63.26,
    "HiddenDetect": 31.28,
    "JailDAM": 30.37,
    "CrossGuard": 2.79,
}
ORIGINS = {
    "jb": ("jailbreakv", ""),
    "mm": ("mm_safetybench", "SD_TYPO"),
    "siuo": ("siuo", ""),
    "fig": ("figstep", ""),
    "vlguard_safes": ("vlguard", "safe_safes"),
    "vlguard_unsafes": ("vlguard", "unsafes"),
}
MAIN = [row for row in PRINTED if row.source == CROSSGUARD]


@pytest.mark.parametrize("row", MAIN, ids=lambda row: row.name)
def test_the_cells_of_a_row_come_to_the_mean_that_the_paper_prints(row):
    assert sum(row.asr.values()) / 5 == pytest.approx(MEANS[row.title], abs=0.0051)


def test_six_cells_are_no_count_of_their_rows_and_have_no_interval():
    odd = {(r.title, key) for r in MAIN for key in r.asr if r.hits(key) is None}
    assert odd == {
        ("Qwen2.5-VL-7B", "siuo"),
        ("GPT-4o", "jailbreakv"),
        ("GPT-4o", "siuo"),
        ("Claude-3.5-Sonnet", "vlguard/unsafes"),
        ("CrossGuard", "jailbreakv"),
        ("CrossGuard", "figstep"),
    }
    crossguard = next(row for row in MAIN if row.title == "CrossGuard")
    siuo = crossguard.estimate("siuo")  # 9 of 167
    assert (crossguard.hits("siuo"), siuo.n) == (9, 167)
    assert (round(siuo.low, 3), round(siuo.high, 3)) == (0.029, 0.099)
    assert crossguard.estimate("jailbreakv").low != crossguard.estimate("jailbreakv").low


def test_a_printed_cell_stands_under_the_benchmark_of_its_set_marked_and_by_its_kind():
    results, titles, lines = printed_results(ORIGINS)
    assert results["printed.crossguard"]["siuo.asr"].value == pytest.approx(0.0539)
    assert results["printed.gpt_4o"]["mm.complied"].value == pytest.approx(0.1615)
    assert results["printed.crossguard"]["vlguard_unsafes.asr"].n == 442
    assert results["printed.crossguard"]["paper.asr"].value == pytest.approx(0.0279, abs=1e-4)
    kinds = {name.split(".")[1] for of in results.values() for name in of}
    assert kinds == {"asr", "complied"}
    assert all(title.endswith("(printed)") for title in titles.values())
    assert any("GPT-4o on siuo: 48.92%, of 167" in line for line in lines)
    assert any("by construction" in line for line in lines)


def test_a_benchmark_that_no_paper_here_prints_has_no_row():
    assert printed_results({"mine": ("mine", "")}) == ({}, {}, [])
    results, _, lines = printed_results({"siuo": ("siuo", "")})
    assert {name for of in results.values() for name in of} == {"siuo.asr", "siuo.complied"}
    assert not any("jailbreakv" in line for line in lines)

"""The short line that a command ends with: what to do next."""

NEXT = {
    "published": "`make reproduce-{name}{profile} RESULTS=mine QUICK=1` trains your own, one seed of each norm",
    "reproduced": "`make report{results}` writes {folder}/index.html, the page of all runs",
    "reproduced elsewhere": "`make compare THEIRS={folder}` lays them beside the published runs",
    "swept": "`make report{results}` writes {folder}/index.html, the page of all runs",
    "planned": "`make reproduce-{name}{profile}{results}{chosen}` carries them out",
    "planned beside published runs": "`make sweep-{name}{profile}{results}` carries them out",
    "nothing left": "`make verdict-{name}{profile}{results}` judges them",
    "judged": "`make report{results}` writes {folder}/index.html, the page of all runs",
    "nothing to judge": "`make reproduce-{name}{profile}{results}` carries its runs out",
    "tables": "`from ln.suite.showing.tables import claims, runs` has them in Python (docs/commands.md)",
    "page": "open {file} in a browser",
    "data": "`make data-<experiment>` fetches what is not here, `make reproduce-<experiment>` runs on what is",
    "fetched": "`make reproduce-{name}`",
    "findings": "`make findings ONLY=<name>` prints one in full",
    "synced": "`make dashboards` makes a workspace and a report of them",
    "dashboards": "open the addresses above in a browser",
    "dashboards on disk": "`make dashboards` without DRY_RUN sends them to W&B",
    "bench": "docs/layers.md tells how to read them",
    "bench-train": "`make profile-<experiment>` shows where a step's time goes",
    "profiled": "`make bench` times the recurrent layers alone",
    "readme": "`git diff README.md` shows what is new",
    "gpu": "`{command}`",
    "no gpu": "`make reproduce-mnist` runs on a CPU",
}


def onward(
    after: str, group: str = "", profile: str = "laptop", results: str = "results", chosen: str = "", **more: object
) -> str:
    """`next: ...`, with the profile, the results folder and the runs chosen (` NORMS=layer`) that the command was
    given."""
    return "next: " + NEXT[after].format(
        name=group.replace("_", "-"),
        profile="" if profile == "laptop" else f" PROFILE={profile}",
        results="" if results == "results" else f" RESULTS={results}",
        folder=results,
        chosen=chosen,
        **more,
    )

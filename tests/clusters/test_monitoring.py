"""Dashboard and scrape configuration, held against the metrics that Ray itself plots and the ports of the clusters."""

import json
import re
from pathlib import Path

import pytest
import ray
import yaml

CLUSTERS = Path(__file__).parents[2] / "clusters"
DASHBOARD = json.loads((CLUSTERS / "monitoring" / "grafana-dashboard.json").read_text())
RAY_DASHBOARDS = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"


@pytest.mark.parametrize("panel", DASHBOARD["panels"], ids=lambda panel: panel["title"])
def test_every_metric_of_a_panel_is_one_that_ray_exports(panel: dict[str, object]) -> None:
    known = set(re.findall(r"ray_[a-z_]+", "".join(file.read_text() for file in RAY_DASHBOARDS.glob("*.py"))))
    used = set(re.findall(r"\bray_[a-z_]+", json.dumps(panel["targets"])))
    assert used
    assert used <= known


def test_panels_have_ids_places_and_balanced_expressions() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    for expression in (target["expr"] for panel in panels for target in panel["targets"]):
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression


def test_latency_queue_and_replicas_are_on_the_board() -> None:
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    assert {"Latency of a request", "Queued requests", "Healthy replicas"} <= titles


def test_the_ports_scraped_are_ports_of_the_pods() -> None:
    monitor = yaml.safe_load((CLUSTERS / "monitoring" / "podmonitor.yaml").read_text())
    service = yaml.safe_load((CLUSTERS / "kuberay" / "rayservice.yaml").read_text())
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    assert scraped <= {port["name"] for port in worker["ports"]}


def test_prometheus_reads_the_file_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    jobs = yaml.safe_load((CLUSTERS / "monitoring" / "prometheus.yml").read_text())["scrape_configs"]
    files = {job["job_name"]: job.get("file_sd_configs") for job in jobs}["ray"][0]["files"]
    assert files == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]

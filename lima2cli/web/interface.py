"""The table of all routes."""

from collections.abc import Sequence

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from lima2cli.web import compiler, data, runs
from lima2cli.web.metrics import Metrics
from lima2cli.web.openapi import description
from lima2cli.web.routes import JSON, Answer, Asked, Parameter, Route, Service

API = "/api/v1"
RUN = f"{API}/runs/{{name}}"

NO_RUN = {404: "there is no such run"}
REFUSED = NO_RUN | {409: "the state of the run does not allow it"}
WRONG = {400: "the body is wrong"}
INVALID = {400: "the request, or the pipeline, has mistakes", 404: "there is no such pipeline"}
LONG = INVALID | {504: "it took too long"}


def table(service: Service) -> Sequence[Route]:
    """Return the routes of a server."""
    routes: list[Route] = []

    async def described(service: Service, asked: Asked) -> Answer:
        return Answer(description(routes))

    routes += [
        Route("GET", f"{API}/openapi.json", "describe", described, "Describe this interface.", "OpenAPI 3.1"),
        Route("GET", f"{API}/pipelines", "list_pipelines", runs.pipelines,
              "List the pipelines that the server was started with.", "`pipelines`: name and file of each"),
        Route("POST", f"{API}/validate", "validate", compiler.validate, "Check a pipeline.",
              "`diagnostics`, as `lima2 validate --format json` prints them; none where it is fine",
              body=compiler.PipelineRequest, text=True, refuses=LONG),
        Route("POST", f"{API}/plan", "plan", compiler.plan, "Compile a pipeline.",
              "the plan, as `lima2 plan --format json` prints it",
              body=compiler.PipelineRequest, text=True, refuses=LONG),
        Route("GET", f"{API}/runs", "list_runs", runs.listed, "List all runs, the newest last.",
              "`runs`: name, state, whether it is live, and frames of each"),
        Route("POST", f"{API}/runs", "start_run", runs.begin, "Start a run.",
              "name, state and directory of the run, once it has started, or is ready to start",
              body=compiler.StartRequest, text=True, status=201, limit_s=330.0,
              refuses=LONG | {409: "this machine cannot run it", 502: "the run failed before it was ready"}),
        Route("GET", RUN, "show_run", runs.shown, "Show a run.",
              "name and state; `status`, with `detail`, of a run that goes on, `summary` of one that has ended",
              refuses=REFUSED | {502: "the run does not answer"}),
        Route("POST", f"{RUN}/start", "start", runs.start, "Start the acquisition that is armed.",
              "the state", body=runs.AcquireRequest, refuses=REFUSED | WRONG),
        Route("POST", f"{RUN}/trigger", "trigger", runs.trigger, "Fire software triggers.", "the state",
              body=runs.TriggerRequest, refuses=REFUSED | WRONG),
        Route("POST", f"{RUN}/set", "set", runs.set_parameter, "Change a parameter of a node while the run goes on.",
              "`frame`, from which on it applies", body=runs.SetRequest, refuses=REFUSED | WRONG),
        Route("POST", f"{RUN}/stop", "stop", runs.stop, "Stop a run: frames in flight are saved.",
              "the state, before it has stopped", body=runs.StopRequest, status=202, refuses=REFUSED | WRONG),
        Route("GET", f"{RUN}/events", "watch_run", runs.Events(),
              "Watch a run: server-sent events, from `status` to `end`.",
              "events, named by the `type` that `lima2 run --progress json` prints; data are JSON",
              media=("text/event-stream",), refuses=NO_RUN, limit_s=None),
        Route("GET", f"{RUN}/frames/{{node}}", "frame", data.frame, "Give a frame of a flow or node.",
              "the frame; its number and time are in the headers Lima2-Frame-Number and Lima2-Time-Ns, too",
              media=(data.NPY, data.PNG, JSON),
              query=(Parameter("number", "The number of a saved frame, or its place from the end; -1: the last, and "
                               "while the run goes on the next of a flow or node, saved or not.", -1),
                     Parameter("as", "The form.", "npy", str, ("npy", "png", "json"))),
              refuses={400: "a parameter is wrong", 404: "there is no such run, node or frame (yet)"}),
        Route("GET", f"{RUN}/counters/{{node}}", "counters", data.counters, "Give the rows of a table.",
              "`columns`, by name, `rows`, and `since` for the next request; npy: a structured array",
              media=(JSON, data.NPY),
              query=(Parameter("since", "Only rows of frames with a greater number.", -1),
                     Parameter("as", "The form.", "json", str, ("json", "npy"))),
              refuses={400: "a parameter is wrong", 404: "there is no such run or table"}),
        Route("GET", "/metrics", "metrics", Metrics(service.library), "Give metrics of the runs.",
              "the text format of Prometheus", media=(CONTENT_TYPE_PLAIN_0_0_4,)),
    ]  # fmt: skip
    return routes

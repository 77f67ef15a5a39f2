"""Engines of TensorRT-RTX, which are built where there is no GPU: whoever uses this asks for the package first."""

from __future__ import annotations

from tests import oracle


def parse(model, log):
    """A network of TensorRT; fails with what the parser says."""
    import tensorrt_rtx as trt

    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    is_parsed = parser.parse(oracle.to_proto(model).SerializeToString())
    said = [parser.get_error(at).desc() for at in range(parser.num_errors)]
    assert is_parsed, (said, log.errors)
    # The parser goes before the network that it fills.
    del parser
    return builder, network


def build(model):
    """An engine, as bytes; fails with what is logged."""
    log = make_log()
    builder, network = parse(model, log)
    engine = builder.build_serialized_network(network, builder.create_builder_config())
    assert engine is not None, log.errors
    assert not log.errors
    return bytes(engine)


def make_log():
    """A logger that keeps what goes wrong."""
    import tensorrt_rtx as trt

    class Log(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.errors = []

        def log(self, severity, message):
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Log()

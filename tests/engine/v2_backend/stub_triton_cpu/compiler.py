from triton.backends.compiler import BaseBackend


class CPUBackend(BaseBackend):
    @staticmethod
    def supports_target(target):
        return target.backend == "cpu"

    def hash(self):
        return "stub"

    def parse_options(self, options):
        return options

    def add_stages(self, stages, options, language):
        raise AssertionError("the interpreter compiles nothing")

    def load_dialects(self, context):
        pass

    def get_module_map(self):
        return {}

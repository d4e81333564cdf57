// NVRTC for the emulated device of driver.cpp: `libnvrtc.so` that compiles CubeCL's CUDA C++ for this machine's CPU, with g++ and
// kernel.h. What it gives instead of PTX names a shared library, which is kept for the next time.
//
// EMULATED_CUDA_KERNELS=DIRECTORY   where they are kept (needed)
// EMULATED_CUDA_HEADER=FILE         kernel.h (needed)
// EMULATED_CUDA_NVRTC=FILE          NVIDIA's own libnvrtc.so: each kernel is compiled by it, too, and fails if that fails; its PTX
//                                   lies beside the libraries
// EMULATED_CUDA_NVRTC_ARCH=sm_90a   for which GPU it does that; the emulated device's if not given
// EMULATED_CUDA_ONLY_NVRTC=1        for a device that is idle: leave out g++ and give the code that NVIDIA's compiler made for the GPU, or
//                                   nothing if there is no such compiler
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

namespace {

enum Status { success = 0, out_of_memory = 1, invalid_program = 4, compilation = 6, internal = 11 };

// float16 is rounded after every operation; numbers are read as what their bits are.
const std::vector<std::string> gcc = {"g++", "-std=c++17", "-O1", "-march=native", "-fno-strict-aliasing", "-fexcess-precision=16", "-fno-gnu-unique",
                                      "-fPIC", "-shared", "-w"};

struct Program {
    std::string source, log, image;
};

std::string setting(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

std::string contents(const std::string &path) {
    std::ifstream file(path);
    return {std::istreambuf_iterator<char>(file), {}};
}

// Under another name first, so that nobody reads half of it.
bool write(const std::string &path, const std::string &text) {
    const std::string own = path + "." + std::to_string(getpid());
    return (std::ofstream(own) << text).flush() && !rename(own.c_str(), path.c_str());
}

std::string hash(const std::string &text) {
    uint64_t value = 14695981039346656037u;
    for (unsigned char byte : text) value = (value ^ byte) * 1099511628211u;
    char hex[17];
    snprintf(hex, sizeof hex, "%016llx", (unsigned long long)value);
    return hex;
}

// CUDA C++ as CubeCL writes it, for g++.
std::string for_host(const std::string &source) {
    static const std::regex shared(R"(extern __shared__ __align__\(\d+\) char (\w+)\[\];)");
    static const std::regex atom(R"re(asm volatile\("atom\.relaxed\.(add|min|max)\.[a-z0-9]+ %0, \[%1\], %2;" : "=\w"\(result\) : "\w"\((\w+)\), "\w"\((\w+)\)\s*\);)re");
    std::istringstream lines(source);
    std::ostringstream out;
    for (std::string line; std::getline(lines, line);) {
        if (line.rfind("#include", 0) == 0) continue;
        line = std::regex_replace(line, shared, "char* const $1 = emulated_shared();");
        line = std::regex_replace(line, atom, "result = emulated_atom<emulated_$1>($2, $3);");
        out << line << '\n';
    }
    return out.str();
}

// A command without a shell; what it prints goes to a file.
bool run(const std::vector<std::string> &command, const std::string &output) {
    std::vector<char *> arguments;
    for (const std::string &argument : command) arguments.push_back(const_cast<char *>(argument.c_str()));
    arguments.push_back(nullptr);
    const pid_t child = fork();
    if (child == 0) {
        if (!freopen(output.c_str(), "w", stderr)) _exit(127);
        execvp(arguments[0], arguments.data());
        _exit(127);
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// NVIDIA's compiler on the same source.
bool check(const std::string &source, const std::vector<std::string> &given, const std::string &base, std::string &log) {
    static void *library = dlopen(setting("EMULATED_CUDA_NVRTC").c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    if (!library) return log = dlerror(), false;
    auto function = [](const char *name) { return dlsym(library, name); };
    auto create = (int (*)(void **, const char *, const char *, int, const char *const *, const char *const *))function("nvrtcCreateProgram");
    auto compile = (int (*)(void *, int, const char *const *))function("nvrtcCompileProgram");
    auto log_size = (int (*)(void *, size_t *))function("nvrtcGetProgramLogSize");
    auto get_log = (int (*)(void *, char *))function("nvrtcGetProgramLog");
    auto destroy = (int (*)(void **))function("nvrtcDestroyProgram");
    if (!create || !compile || !log_size || !get_log || !destroy) return log = setting("EMULATED_CUDA_NVRTC") + " is not NVRTC", false;
    std::vector<std::string> options = given;
    if (const std::string arch = setting("EMULATED_CUDA_NVRTC_ARCH"); !arch.empty())
        for (std::string &option : options)
            if (option.rfind("--gpu-architecture=", 0) == 0) option = "--gpu-architecture=" + arch;
    std::vector<const char *> pointers;
    for (const std::string &option : options) pointers.push_back(option.c_str());
    void *program;
    if (create(&program, source.c_str(), nullptr, 0, nullptr, nullptr)) return log = "nvrtcCreateProgram failed", false;
    const bool good = compile(program, (int)pointers.size(), pointers.data()) == 0;
    size_t size = 0;
    log_size(program, &size);
    log.resize(size);
    get_log(program, log.data());
    if (good)
        for (const char *kind : {"PTX", "CUBIN"}) {
            const std::string get = std::string("nvrtcGet") + kind;
            std::string made;
            auto get_size = (int (*)(void *, size_t *))function((get + "Size").c_str());
            auto get_code = (int (*)(void *, char *))function(get.c_str());
            if (!get_size || !get_code || get_size(program, &size)) return log = "there is no " + get, false;
            made.resize(size);
            if (get_code(program, made.data())) return log = get + " failed", false;
            if (*kind == 'P') made.resize(strlen(made.c_str()));
            if (!write(base + (*kind == 'P' ? ".ptx" : ".cubin"), made)) return log = "cannot write " + base, false;
        }
    destroy(&program);
    return good;
}

Status compile(Program &program, const std::vector<std::string> &options) {
    const std::string folder = setting("EMULATED_CUDA_KERNELS"), header = setting("EMULATED_CUDA_HEADER");
    if (folder.empty() || header.empty()) return program.log = "EMULATED_CUDA_KERNELS and EMULATED_CUDA_HEADER are not set", compilation;
    std::smatch name;
    static const std::regex entry(R"(__global__ void __launch_bounds__\(\d+\)\s+(\w+)\()");
    if (!std::regex_search(program.source, name, entry)) return program.log = "no kernel in the source", compilation;
    const bool gpu = !setting("EMULATED_CUDA_ONLY_NVRTC").empty();
    // All that goes into a file is in its name: the source, what is made of it, how it is compiled, and for which CPU or GPU.
    static const std::string cpu = contents("/proc/cpuinfo").substr(0, contents("/proc/cpuinfo").find("\n\n"));
    static const std::string flags = cpu.substr(cpu.find("flags") == std::string::npos ? 0 : cpu.find("flags"));
    const std::string source = gpu ? "" : for_host(program.source) + "\nEMULATED_ENTRY(" + name[1].str() + ")\n";
    std::string how, asked = setting("EMULATED_CUDA_NVRTC") + setting("EMULATED_CUDA_NVRTC_ARCH");
    for (const std::string &option : gcc) how += option;
    for (const std::string &option : options) asked += option;
    const std::string base = folder + "/" + hash(program.source), nvidia = base + "-" + hash(asked);
    const std::string built = base + "-" + hash(source + contents(header) + contents(header.substr(0, header.rfind('/') + 1) + "emulator.h") + how + flags), library = built + ".so", unit = built + ".cpp";
    const std::string own = built + "." + std::to_string(getpid());
    if (!write(base + ".cu", program.source)) return program.log = "cannot write to " + folder, compilation;
    if (gpu && setting("EMULATED_CUDA_NVRTC").empty()) return program.image = "\x7f" "ELF, and nothing else", success;
    if (!setting("EMULATED_CUDA_NVRTC").empty()) {
        if (access((nvidia + ".cubin").c_str(), R_OK) && !check(program.source, options, nvidia, program.log)) {
            fprintf(stderr, "emulated CUDA: NVRTC refuses %s.cu: %s\n", base.c_str(), program.log.c_str());
            return compilation;
        }
        if (gpu) return program.image = contents(nvidia + ".cubin"), success;
    }
    if (access(library.c_str(), R_OK)) {
        if (!write(unit, "#include \"" + header + "\"\n" + source)) return program.log = "cannot write to " + folder, compilation;
        const std::string made = own + ".so";
        std::vector<std::string> command = gcc;
        command.insert(command.end(), {unit, "-o", made, "-lm"});
        if (!run(command, own + ".log")) {
            program.log = "g++: " + contents(own + ".log");
            unlink((own + ".log").c_str());
            return compilation;
        }
        unlink((own + ".log").c_str());
        if (rename(made.c_str(), library.c_str())) return program.log = "cannot write " + library, compilation;
    }
    program.image = "emulated " + library + "\n" + name[1].str();
    return success;
}

} // namespace

#define API extern "C" __attribute__((visibility("default"))) int

API nvrtcVersion(int *major, int *minor) { return *major = 12, *minor = 9, success; }
extern "C" __attribute__((visibility("default"))) const char *nvrtcGetErrorString(int status) {
    return status == success ? "NVRTC_SUCCESS" : status == compilation ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR_INTERNAL_ERROR";
}
API nvrtcCreateProgram(Program **program, const char *source, const char *, int, const char *const *, const char *const *) {
    return *program = new Program{source, "", ""}, success;
}
API nvrtcDestroyProgram(Program **program) { return delete *program, *program = nullptr, success; }
API nvrtcCompileProgram(Program *program, int count, const char *const *options) {
    return compile(*program, {options, options + count});
}
API nvrtcGetProgramLogSize(Program *program, size_t *size) { return *size = program->log.size() + 1, success; }
API nvrtcGetProgramLog(Program *program, char *log) { return strcpy(log, program->log.c_str()), success; }
API nvrtcGetPTXSize(Program *program, size_t *size) { return *size = program->image.size() + 1, success; }
API nvrtcGetPTX(Program *program, char *image) { return memcpy(image, program->image.c_str(), program->image.size() + 1), success; }

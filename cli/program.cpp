// SPDX-License-Identifier: Apache-2.0
// The program: a table of commands, and the one place where errors become exit codes:
// 0 done, 1 failed, 2 usage, 3 bad input, 130 training interrupted.
#include "cli/program.h"

#include <c10/util/Exception.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "cli/commands.h"
#include "cli/output.h"
#include "performer/base/error.h"
#include "performer/base/fields.h"
#include "performer/base/printable.h"

namespace performer::cli {

namespace {

struct Command {
  const char* name;
  const char* summary;
  Action (*setup)(CLI::App&);
};

constexpr Command kCommands[] = {
    {"train", "train a language model on FASTA, text or images, or fine-tune one with labels", train_command},
    {"evaluate",
     "accuracy and perplexity of a model beside unigram and bigram, or how well it predicts labels",
     evaluate_command},
    {"predict", "classes and numbers that a fine-tuned model gives sequences or their tokens",
     predict_command},
    {"score", "log-likelihoods of sequences, whole or token by token", score_command},
    {"embed", "embeddings of sequences of any length, pooled or token by token", embed_command},
    {"variants", "effects of substitutions, insertions and deletions, beside measured ones",
     variants_command},
    {"generate", "sample new sequences from a causal model", generate_command},
    {"convert", "a pretrained Transformer of another program as a model folder", convert_command},
    {"export", "a model as a Hugging Face folder", export_command},
    {"approx", "how close random features come to softmax attention, in theory's terms or on a model",
     approx_command},
    {"attention", "what a model attends to: matrices, kinds of heads, and similarity of amino acids",
     attention_command},
    {"report", "one page about one or several runs: curves, results, attention", report_command},
    {"bench",
     "speed of attention, decoding and training on this machine, and where exact attention is slower",
     bench_command},
    {"info", "this build and machine, a model, or the attention kinds", info_command},
};

constexpr const char* kOutOfMemory =
    "out of memory{}: use shorter sequences, smaller batches (data.batch_tokens) or a smaller model, or a "
    "machine with "
    "more memory";

std::string message_begin;

int fail(int exit_code, const std::string& message) {
  // Where this cannot be written, the exit code still tells.
  std::fputs(fmt::format("performer: {}{}\n", message_begin, printable(message)).c_str(), stderr);
  return exit_code;
}

template <class... Errors>
bool is_one_of(const c10::Error& error) {
  return ((dynamic_cast<const Errors*>(&error) != nullptr) || ...);
}

// LibTorch's errors. Those that say the call itself is wrong (our operators check their arguments with them)
// are usage errors. Running out of memory is told apart by the allocator's message, the only mark it leaves.
int fail(const c10::Error& error) {
  const std::string message = error.what_without_backtrace();
  if (is_one_of<c10::ValueError, c10::TypeError, c10::IndexError, c10::NotImplementedError>(error)) {
    return fail(2, message);
  }
  const size_t place = message.find("you tried to allocate ");
  if (place != std::string::npos) {
    const size_t number = place + std::string_view("you tried to allocate ").size();
    const double bytes = std::strtod(message.c_str() + number, nullptr);
    return fail(1, fmt::format(fmt::runtime(kOutOfMemory),
                               fmt::format(" (a tensor of {:.1f} GiB)", bytes / (1 << 30))));
  }
  return fail(1, fmt::format("LibTorch reports: {}", message));
}

void check_command_name(const std::string& word) {
  std::vector<std::string> names;
  for (const auto& command : kCommands) {
    if (word == command.name) return;
    names.emplace_back(command.name);
  }
  names.insert(names.end(), {"help", "version"});
  const std::string near = nearest(word, names);
  throw UsageError(near.empty()
                       ? fmt::format("unknown command '{}'; commands are {}", word, fmt::join(names, ", "))
                       : fmt::format("unknown command '{}': did you mean '{}'?", word, near));
}

// "performer score", or "performer" for no command.
std::string command_text(const CLI::App& command) {
  return command.get_parent() == nullptr ? "performer" : "performer " + command.get_name();
}

// An argument that no option took: most often a misspelt option.
[[noreturn]] void throw_unexpected(const CLI::App& command) {
  const std::vector<std::string> rest = command.remaining();
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const auto& name : option->get_lnames()) names.push_back("--" + name);
  }
  const std::string word = rest.empty() ? "" : rest.front().substr(0, rest.front().find('='));
  const std::string near = word.starts_with("-") ? nearest(word, names) : "";
  throw UsageError(fmt::format("unexpected argument '{}'{}; see {} --help", shown(word),
                               near.empty() ? "" : fmt::format(" (did you mean '{}'?)", near),
                               command_text(command)));
}

void print(const std::string& text) {
  Output out("-");
  out.write(text);
  out.finish();
}

// "help", "help COMMAND" and "version" as the options that they stand for.
std::vector<std::string> arguments_of(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.empty()) return {"--help"};
  std::string& first = arguments.front();
  if (first == "version" && argc == 2) first = "--version";
  if (first != "help") return arguments;
  if (argc == 2) return {"--help"};
  check_command_name(arguments[1]);
  return {arguments[1], "--help"};
}

int run(int argc, char** argv) {
  CLI::App app(
      "Performers: linear-attention language models of proteins, DNA, text, images and other sequences");
  app.name("performer");
  app.set_version_flag("--version", "performer " PERFORMER_VERSION);
  app.footer("performer COMMAND --help shows the options of a command with their defaults.");
  std::vector<std::pair<CLI::App*, Action>> actions;
  for (const auto& command : kCommands) {
    CLI::App* sub = app.add_subcommand(command.name, command.summary)->group("Commands");
    actions.emplace_back(sub, command.setup(*sub));
  }
  std::vector<std::string> arguments = arguments_of(argc, argv);
  if (!arguments.front().starts_with('-')) check_command_name(arguments.front());
  const auto chosen = [&]() -> CLI::App* {
    for (const auto& [sub, action] : actions) {
      if (sub->parsed()) return sub;
    }
    return nullptr;
  };
  try {
    std::ranges::reverse(arguments);  // as CLI11 takes them
    app.parse(std::move(arguments));
  } catch (const CLI::CallForHelp&) {
    print(app.help());
    return 0;
  } catch (const CLI::CallForVersion& version) {
    print(std::string(version.what()) + "\n");
    return 0;
  } catch (const CLI::ExtrasError&) {
    throw_unexpected(chosen() != nullptr ? *chosen() : app);
  } catch (const CLI::ParseError& error) {
    throw UsageError(
        fmt::format("{}; see {} --help", error.what(), command_text(chosen() ? *chosen() : app)));
  }
  for (const auto& [sub, action] : actions) {
    if (sub->parsed()) action();
  }
  return 0;
}

}  // namespace

void begin_messages_with(const std::string& words) {
  message_begin = words;
}

int run_program(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const SilentEnd& end) {
    return end.exit_code;
  } catch (const Error& error) {
    return fail(error.exit_code(), error.what());
  } catch (const c10::Error& error) {
    return fail(error);
  } catch (const std::bad_alloc&) {
    return fail(1, fmt::format(fmt::runtime(kOutOfMemory), ""));
  } catch (const std::length_error&) {  // a container asked for more than the address space
    return fail(1, fmt::format(fmt::runtime(kOutOfMemory), ""));
  } catch (const std::exception& error) {
    return fail(1, fmt::format("unexpected error: {}", error.what()));
  }
}

}  // namespace performer::cli

// SPDX-License-Identifier: Apache-2.0
// What is checked about a command's inputs and outputs together, before anything is opened or worked on.
#pragma once

#include <string>
#include <vector>

#include "performer/data/corpus.h"
#include "performer/models/folder.h"

namespace performer::cli {

// Throws UsageError when `output`, a file that a command writes, is one of its inputs: the same file, also by
// another name or a hard link, standard input or output included, a file of the model folder
// (results aside: studies/experiment.h), or a place in a folder that is read. "" and "-" are standard output.
// `model` may be empty. Paths that do not exist are left to who reads them.
void refuse_input_as_output(const std::string& output, const std::vector<std::string>& inputs,
                            const std::string& model = "");
// The same for a folder that a command writes: it must not be a folder that is read, lie in one, or be the
// model folder; nor may an input lie in it whose name ends like a file that is written there (".tsv").
void refuse_input_as_folder(const std::string& output, const std::vector<std::string>& inputs,
                            const std::string& model, const std::vector<std::string>& endings);

// load_model(), with answers to arguments in the wrong order: what is given as MODEL may be a file of data or
// of a model folder, and one of the `inputs` the model folder.
ModelFolder load_model_before(const std::string& model, const std::vector<std::string>& inputs);

// Throws what reading the inputs for a model would throw, as far as that can be told from their first bytes.
void check_model_inputs(const std::vector<std::string>& inputs, const ModelFolder& folder);

// Throws InputError for the first sequence that is longer than the model's positions cover (learned and axial
// ones), before any is worked on. Inputs that can be read only once are left to who reads them. `markers` are
// the tokens that are read beside a sequence's own.
void check_lengths(const std::vector<std::string>& inputs, const ModelFolder& folder, int64_t markers);
int64_t scoring_markers(const ModelFolder& folder);  // what scoring reads
// The same for an evaluation, which reads the markers too.
void check_lengths(const data::Corpus& corpus, const ModelFolder& folder);

// All tokens of the inputs, for an estimate of the time that is left; 0 where they can be read only once.
int64_t count_tokens(const std::vector<std::string>& files, const ModelFolder& folder);
// What messages call the inputs.
std::string sources_text(const std::vector<std::string>& files);

// The folder for temporary files: what the variable TMPDIR names, else /tmp. Throws Error naming it, and the
// variable, when no file can be made in it.
std::string temporary_folder();

}  // namespace performer::cli

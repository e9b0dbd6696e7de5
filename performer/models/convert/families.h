// SPDX-License-Identifier: Apache-2.0
// The families of this folder, one file each. Private to convert/.
#pragma once

#include "performer/models/convert/convert.h"

namespace performer::convert {

Family bert_family();             // bert.cpp: BERT and its relatives under these names
Family distilbert_family();       // bert.cpp
Family roberta_family();          // bert.cpp
Family esm_family();              // esm.cpp: ESM-2 and ESM-1b of Hugging Face
Family fairseq_esm_family();      // fairseq.cpp: ESM-2 checkpoints of fair-esm
Family fairseq_roberta_family();  // fairseq.cpp: RoBERTa checkpoints, such as Sapiens
Family gpt2_family();             // gpt2.cpp
Family llama_family();            // llama.cpp: LLaMA-shaped folders of Hugging Face
Family llama2c_family();          // llama.cpp: model files of llama2.c

// Whether config.json names this model_type.
bool is_type(const Source& source, const char* model_type);

}  // namespace performer::convert

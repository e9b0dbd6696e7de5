// SPDX-License-Identifier: Apache-2.0
// What data are that no reader here reads, told by their first bytes: other formats of sequences and
// structures, packed files, binary files, text in UTF-16.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace performer::data {

struct Foreign {
  enum class Kind {
    binary,   // nobody means to read it as it is
    special,  // text of a format that has a meaning of its own; as mere text only on request
    general,  // text like any other, such as JSON: what is no FASTA for people who expect FASTA
  };
  Kind kind = Kind::binary;
  std::string what;  // "FASTQ"
  std::string cure;  // "convert it to FASTA, ..."
};

// Nothing for FASTA, for pictures and archives that are read here, and for text that is nothing in
// particular.
std::optional<Foreign> identify(std::string_view head);

// The same, and names also what is read here, but not as FASTA: pictures and tar archives.
std::optional<Foreign> identify_beside_fasta(std::string_view head);

// "; it looks like FASTQ: convert it ..."; empty where there is nothing to say.
std::string looks_like(const std::optional<Foreign>& foreign);

// What follows the '>' in the first line that is neither blank nor a comment (';'); nothing where that line
// does not begin with '>', so that the data are no FASTA.
std::optional<std::string_view> fasta_header(std::string_view head);

// Whether a header, without its '>', is one of PIR (NBRF), where a line of description follows it:
// "P1;CRAB_ANAPL".
bool is_pir_header(std::string_view header);

}  // namespace performer::data

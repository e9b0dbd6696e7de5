// SPDX-License-Identifier: Apache-2.0
#include "performer/data/foreign.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <vector>

#include "performer/data/image/picture.h"
#include "performer/data/image/tar.h"

namespace performer::data {
namespace {

using namespace std::string_view_literals;
using Kind = Foreign::Kind;

// Bytes that a binary file begins with, at `at`.
struct Signature {
  size_t at;
  std::string_view bytes, what, cure;
};

constexpr std::string_view kUnzip = "unpack it and give the files in it",
                           kConvertPicture = "convert it to PNG",
                           kExport = "export its sequences as FASTA, its text as plain text";

const std::array kSignatures = {
    Signature{0, "BZh"sv, "bzip2", "unpack it with bunzip2"},
    Signature{0, "\xfd\x37zXZ"sv, "xz", "unpack it with xz -d"},
    Signature{0, "LZIP\x01"sv, "lzip", "unpack it with lzip -d"},
    Signature{0, "\x04\x22\x4d\x18"sv, "lz4", "unpack it with lz4 -d"},
    Signature{0, "\x1f\x9d"sv, "the output of compress (.Z)", "unpack it with gzip -d"},
    Signature{0, "\x1f\x8b"sv, "gzip", "unpack it with gzip -d"},
    Signature{0, "\x5d\x00\x00"sv, "lzma", "unpack it with xz -d"},
    Signature{0, "PK\x03\x04"sv, "a zip archive (or an office document)", kUnzip},
    Signature{0, "PK\x05\x06"sv, "an empty zip archive", kUnzip},
    Signature{0, "7z\xbc\xaf\x27\x1c"sv, "a 7z archive", kUnzip},
    Signature{0, "Rar!\x1a\x07"sv, "a rar archive", kUnzip},
    Signature{0, "!<arch>\n"sv, "an ar archive", kUnzip},
    Signature{0, "BAM\x01"sv, "BAM", "convert it to FASTA with samtools fasta"},
    Signature{0, "CRAM"sv, "CRAM", "convert it to FASTA with samtools fasta"},
    Signature{0, "BCF\x02"sv, "BCF (variants)", "convert it to FASTA with bcftools consensus"},
    Signature{0, "\x43\x27\x41\x1a"sv, "2bit", "convert it to FASTA with twoBitToFa"},
    Signature{0, "NCBI.sra"sv, "SRA", "convert it to FASTA with fasterq-dump --fasta"},
    Signature{0, "\x89HDF\r\n"sv, "HDF5", kExport},
    Signature{0, "\x93NUMPY"sv, "a NumPy array", kExport},
    Signature{0, "PAR1"sv, "Parquet", kExport},
    Signature{0, "ARROW1"sv, "Arrow", kExport},
    Signature{0, "SQLite format 3"sv, "an SQLite database", kExport},
    Signature{0, "%PDF-"sv, "PDF", kExport},
    Signature{0, "\xd0\xcf\x11\xe0"sv, "an old office document", kExport},
    Signature{0, "{\\rtf"sv, "rich text (RTF)", "save it as plain text"},
    Signature{0,
              "\x7f"
              "ELF"sv,
              "a program", "give the file that was meant"},
    Signature{0, "GIF8"sv, "a GIF picture", kConvertPicture},
    Signature{0, "II*\x00"sv, "a TIFF picture", kConvertPicture},
    Signature{0, "MM\x00*"sv, "a TIFF picture", kConvertPicture},
    Signature{8, "WEBPVP8"sv, "a WebP picture", kConvertPicture},
    Signature{6, "\x00\x00\x00\x00"sv, "", ""},  // with "BM": a BMP picture
    Signature{0, "version https://git-lfs"sv, "a pointer of Git LFS in place of the file",
              "fetch the file with git lfs pull"},
};

std::optional<Foreign> by_signature(std::string_view head) {
  for (const Signature& signature : kSignatures) {
    if (head.substr(std::min(signature.at, head.size()), signature.bytes.size()) != signature.bytes) continue;
    if (signature.bytes == "BZh" && (head.size() < 4 || head[3] < '1' || head[3] > '9')) continue;
    if (!signature.what.empty()) {
      return Foreign{Kind::binary, std::string(signature.what), std::string(signature.cure)};
    }
    if (head.starts_with("BM")) return Foreign{Kind::binary, "a BMP picture", std::string(kConvertPicture)};
  }
  return std::nullopt;
}

// The name of an encoding of two or four bytes a letter, by its mark or by the zeros of ASCII text in it;
// else "".
std::string_view wide_encoding(std::string_view head) {
  if (head.starts_with("\xff\xfe\x00\x00"sv) || head.starts_with("\x00\x00\xfe\xff"sv)) return "UTF-32";
  if (head.starts_with("\xff\xfe"sv) || head.starts_with("\xfe\xff"sv)) return "UTF-16";
  constexpr size_t kLook = 64;
  head = head.substr(0, std::min(head.size(), kLook));
  // Whether exactly the bytes at these places of each group are not zero.
  const auto fits = [&](size_t group, size_t place) {
    const size_t size = head.size() / group * group;
    for (size_t i = 0; i < size; ++i) {
      if ((head[i] != '\0') != (i % group == place)) return false;
    }
    return size >= 4;
  };
  if (fits(4, 0)) return "UTF-32LE";
  if (fits(4, 3)) return "UTF-32BE";
  if (fits(2, 0)) return "UTF-16LE";
  if (fits(2, 1)) return "UTF-16BE";
  return "";
}

std::string_view first_line(std::string_view text) {
  std::string_view line = text.substr(0, text.find('\n'));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

// The lines that are whole, up to `most`.
std::vector<std::string_view> lines_of(std::string_view text, size_t most) {
  std::vector<std::string_view> lines;
  while (!text.empty() && lines.size() < most) {
    lines.push_back(first_line(text));
    const size_t end = text.find('\n');
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return lines;
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& letter : result) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  return result;
}

bool consists_of(std::string_view text, std::string_view letters) {
  return !text.empty() && text.find_first_not_of(letters) == std::string_view::npos;
}

constexpr std::string_view kUpper = "ABCDEFGHIJKLMNOPQRSTUVWXYZ*-.",
                           kAnyCase = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz*-.";

// With `module` of Biopython's SeqIO.
Foreign sequences(std::string_view what, std::string_view module) {
  return {Kind::special, std::string(what),
          fmt::format(
              "convert it to FASTA, such as by Biopython: SeqIO.convert(\"IN\", \"{}\", \"OUT\", \"fasta\")",
              module)};
}
Foreign other(std::string_view what, std::string_view cure) {
  return {Kind::special, std::string(what), std::string(cure)};
}

// FASTQ, whose first line begins with '@': lines of letters follow, then one that begins with '+', unless the
// look ends before.
bool is_fastq(std::string_view text) {
  constexpr size_t kLines = 1000;
  const std::vector<std::string_view> lines = lines_of(text, kLines);
  size_t at = 1;
  while (at < lines.size() && consists_of(lines[at], kAnyCase)) ++at;
  return at > 1 && (at < lines.size() ? lines[at].starts_with('+') : consists_of(lines[1], kUpper));
}

// Formats of sequences, alignments and structures.
std::optional<Foreign> by_sequence_format(std::string_view text) {
  const std::vector<std::string_view> lines = lines_of(text, 1);
  const std::string_view first = lines.empty() ? "" : lines[0];
  const auto has = [&](std::string_view part) { return text.find(part) != std::string_view::npos; };
  const auto begins = [&](const auto&... starts) { return (first.starts_with(starts) || ...); };
  if (begins("@HD\t", "@SQ\t", "@RG\t", "@PG\t"))
    return other("SAM", "convert it to FASTA with samtools fasta");
  if (begins("@") && is_fastq(text)) return sequences("FASTQ", "fastq");
  if (begins("LOCUS  ")) return sequences("a GenBank flat file", "genbank");
  if (begins("ID   ") && (has("\nAC   ") || has("\nDE   ") || has("\nSQ   ") || has("\nXX"))) {
    return first.ends_with("AA.") || has("\nDT   ") ? sequences("a UniProt flat file", "swiss")
                                                    : sequences("an EMBL flat file", "embl");
  }
  if (begins("CLUSTAL", "MUSCLE (", "PROBCONS")) return sequences("a Clustal alignment", "clustal");
  if (begins("# STOCKHOLM")) return sequences("a Stockholm alignment", "stockholm");
  if (lower(first).starts_with("#nexus")) return sequences("NEXUS", "nexus");
  if (begins("!!AA_MULTIPLE", "!!NA_MULTIPLE", "PileUp")) return sequences("an MSF alignment", "msf");
  if (begins("HEADER  ", "TITLE   ", "REMARK  ", "CRYST1 ", "MODEL   ", "ATOM  ", "HETATM", "SEQRES ") &&
      (has("ATOM  ") || has("HETATM") || has("\nSEQRES ") || has("\nREMARK ") || has("\nCOMPND"))) {
    return sequences("a PDB structure", "pdb-atom");
  }
  if (begins("data_") && (has("\n_") || has("\nloop_"))) return sequences("an mmCIF structure", "cif-atom");
  if (begins("##gff-version", "##sequence-region"))
    return other("GFF", "take its sequences, the part behind ##FASTA, or make them with gffread");
  if (begins("##fileformat=VCF"))
    return other("VCF (variants)", "convert it to FASTA with bcftools consensus");
  if (begins("HMMER3/")) return other("a HMMER profile", "give the sequences, not the profile");
  if (begins("BLASTP ", "BLASTN ", "BLASTX ", "TBLASTN ", "PSIBLAST ", "# BLAST"))
    return other("a report of BLAST", "give the sequences themselves, such as by blastdbcmd");
  return std::nullopt;
}

// PHYLIP: a line with the numbers of sequences and of columns, then lines of a name and letters.
bool is_phylip(std::string_view text) {
  constexpr std::string_view kBlanks = " \t", kDigits = "0123456789";
  const std::vector<std::string_view> lines = lines_of(text, 2);
  if (lines.size() < 2) return false;
  std::vector<size_t> numbers;
  for (std::string_view rest = lines[0]; rest.find_first_not_of(kBlanks) != std::string_view::npos;) {
    rest.remove_prefix(rest.find_first_not_of(kBlanks));
    const std::string_view word = rest.substr(0, rest.find_first_of(kBlanks));
    constexpr size_t kMostDigits = 9;
    if (!consists_of(word, kDigits) || word.size() > kMostDigits) return false;
    size_t number = 0;
    for (const char digit : word) number = 10 * number + static_cast<size_t>(digit - '0');
    numbers.push_back(number);
    rest.remove_prefix(word.size());
  }
  const size_t name = std::min(lines[1].find_first_of(kBlanks), lines[1].size());
  std::string letters(lines[1].substr(name));
  std::erase_if(letters, [&](char letter) { return kBlanks.find(letter) != std::string_view::npos; });
  constexpr size_t kLong = 10;  // letters that a line has where there are as many columns
  return numbers.size() == 2 && name > 0 && consists_of(letters, kAnyCase) && letters.size() <= numbers[1] &&
         letters.size() >= std::min(kLong, numbers[1]);
}

// Whether a line names a column of sequences.
bool names_sequences(std::string_view line, char separator) {
  while (true) {
    std::string field = lower(line.substr(0, line.find(separator)));
    std::erase_if(field, [](char letter) { return letter == '"' || letter == ' '; });
    if (field == "sequence" || field == "seq" || field.ends_with("_sequence") || field.ends_with("_seq"))
      return true;
    const size_t end = line.find(separator);
    if (end == std::string_view::npos) return false;
    line.remove_prefix(end + 1);
  }
}

// Formats that hold anything: special where they hold sequences.
std::optional<Foreign> by_general_format(std::string_view text) {
  const std::string start = lower(text.substr(0, 4096));
  const auto has = [&](std::string_view part) { return start.find(part) != std::string::npos; };
  if (start.starts_with("<!doctype html") || start.starts_with("<html") ||
      (start.starts_with("<") && has("<html")))
    return other("a web page (HTML)", "download the file itself, in place of the page");
  const auto kind = [](bool special) { return special ? Kind::special : Kind::general; };
  if (start.starts_with("<?xml") || start.starts_with("<!doctype ")) {
    const bool special =
        has("sequence") || has("<uniprot") || has("seqset") || has("blastoutput") || has("datablock");
    return Foreign{kind(special), "XML", "convert its sequences to FASTA: a line '>name', then the letters"};
  }
  if (start.starts_with('{') || start.starts_with("[")) {
    const size_t next = start.find_first_not_of(" \t\r\n", 1);
    if (next != std::string::npos && "\"{[}]"sv.find(start[next]) != std::string_view::npos) {
      return Foreign{kind(has("\"sequence\"") || has("\"seq\"")), "JSON",
                     "convert its sequences to FASTA: a line '>name', then the letters"};
    }
  }
  const std::vector<std::string_view> lines = lines_of(text, 2);
  for (const char separator : {'\t', ','}) {
    const auto count = [&](std::string_view line) { return std::ranges::count(line, separator); };
    if (lines.size() < 2 || count(lines[0]) == 0 || count(lines[0]) != count(lines[1])) continue;
    return Foreign{kind(names_sequences(lines[0], separator)),
                   separator == '\t' ? "a table with tabs (TSV)" : "a table with commas (CSV)",
                   separator == '\t'
                       ? "convert it to FASTA, such as with awk -F'\\t' '{print \">\" $1 \"\\n\" $2}'"
                       : "convert it to FASTA, such as with awk -F, '{print \">\" $1 \"\\n\" $2}'"};
  }
  return std::nullopt;
}

// FASTA behind lines of something else, and sequences without any header.
std::optional<Foreign> by_sequences(std::string_view text) {
  constexpr size_t kLong = 20, kLines = 1000;
  const std::vector<std::string_view> lines = lines_of(text, kLines);
  for (size_t i = 0; i + 1 < lines.size(); ++i) {
    if (!lines[i].starts_with('>') || lines[i + 1].size() < kLong || !consists_of(lines[i + 1], kUpper))
      continue;
    return other("FASTA behind other lines",
                 fmt::format("remove what comes before the first line that begins with '>'"));
  }
  if (!lines.empty() && lines[0].size() >= kLong && consists_of(lines[0], kUpper) &&
      lines[0].find_first_of("-.") != 0) {
    return Foreign{Kind::general, "a sequence without a header",
                   "put a line such as '>name' before each sequence"};
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::string_view> fasta_header(std::string_view head) {
  constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf", kSpaces = " \t\r\v\f";
  if (head.starts_with(kByteOrderMark)) head.remove_prefix(kByteOrderMark.size());
  while (!head.empty()) {
    const size_t end = head.find_first_of("\r\n");
    const std::string_view line = head.substr(0, end);
    const size_t text = line.find_first_not_of(kSpaces);
    const bool skipped = text == std::string_view::npos || line[text] == ';';
    if (!skipped) return line[text] == '>' ? std::optional(line.substr(text + 1)) : std::nullopt;
    if (end == std::string_view::npos) break;
    head.remove_prefix(end + 1);
  }
  return std::nullopt;
}

bool is_pir_header(std::string_view header) {
  constexpr std::array kTypes = {"P1", "F1", "DL", "DC", "RL", "RC", "N1", "N3", "XX"};
  const bool typed =
      header.size() > 3 && header[2] == ';' && std::ranges::find(kTypes, header.substr(0, 2)) != kTypes.end();
  return typed && header.find('=') == std::string_view::npos;  // "N1;size=12" is a name of other programs
}

std::optional<Foreign> identify(std::string_view head) {
  if (const std::string_view encoding = wide_encoding(head); !encoding.empty()) {
    return Foreign{Kind::binary, fmt::format("text in {}", encoding),
                   fmt::format("convert it with iconv -f {} -t UTF-8", encoding)};
  }
  if (const auto header = fasta_header(head)) {
    return is_pir_header(*header) ? std::optional(sequences("PIR (NBRF)", "pir")) : std::nullopt;
  }
  if (is_png(head) || is_jpeg(head) || is_tar(head)) return std::nullopt;
  if (auto found = by_signature(head)) return found;
  std::string_view text = head;
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n\v\f"), text.size()));
  if (auto found = by_sequence_format(text)) return found;
  if (is_phylip(text)) return sequences("a PHYLIP alignment", "phylip-relaxed");
  if (head.find('\0') != std::string_view::npos)
    return Foreign{Kind::binary, "binary data (it has zero bytes)", "give the file that was meant"};
  if (auto found = by_general_format(text)) return found;
  return by_sequences(text);
}

std::optional<Foreign> identify_beside_fasta(std::string_view head) {
  constexpr std::string_view kImages = "images are read with data.format = image";
  if (is_png(head)) return Foreign{Kind::binary, "a PNG picture", std::string(kImages)};
  if (is_jpeg(head)) return Foreign{Kind::binary, "a JPEG picture", std::string(kImages)};
  if (is_tar(head))
    return Foreign{Kind::binary, "a tar archive", "unpack it with tar -xf and give the files in it"};
  return identify(head);
}

std::string looks_like(const std::optional<Foreign>& foreign) {
  return foreign ? fmt::format("; it looks like {}: {}", foreign->what, foreign->cure) : "";
}

}  // namespace performer::data

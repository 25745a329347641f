#include "byte_level.h"

#include <fstream>
#include <sstream>
#include <unordered_map>

#include "files/json.h"

namespace mobilemoe {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 24;

bool is_own_letter(int byte) { return (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173); }

// Printable bytes stand for themselves; the others are U+0100, U+0101 ... in order.
std::unordered_map<uint32_t, char> make_alphabet() {
  std::unordered_map<uint32_t, char> alphabet;
  uint32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    alphabet[is_own_letter(byte) ? static_cast<uint32_t>(byte) : next++] = static_cast<char>(byte);
  }
  return alphabet;
}

// The letters of an alphabet below U+0800 take one or two bytes of UTF-8.
std::string bytes_of(const std::string& letters) {
  static const std::unordered_map<uint32_t, char> alphabet = make_alphabet();
  std::string bytes;
  for (size_t i = 0; i < letters.size(); ++i) {
    uint32_t code = static_cast<unsigned char>(letters[i]);
    if (code >= 0xC0 && code < 0xE0 && i + 1 < letters.size()) {
      code = (code & 0x1F) << 6 | (static_cast<unsigned char>(letters[++i]) & 0x3F);
    }
    const auto found = alphabet.find(code);
    if (found == alphabet.end()) return letters;  // not of this alphabet: a piece that is plain text
    bytes += found->second;
  }
  return bytes;
}

const std::string* type_of(const Json* part) {
  const Json* type = part == nullptr ? nullptr : part->find("type");
  return type == nullptr ? nullptr : type->text();
}

}  // namespace

ByteLevelVocabulary::ByteLevelVocabulary(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return;
  std::ostringstream text;
  text << file.rdbuf();
  const std::string source = text.str();
  const Json tokenizer = parse_json(source, path, ErrorCode::file);
  const std::string* decoder = type_of(tokenizer.find("decoder"));
  const Json* model = tokenizer.find("model");
  const Json* vocabulary = model == nullptr ? nullptr : model->find("vocab");
  if (decoder == nullptr || *decoder != "ByteLevel" || vocabulary == nullptr || !vocabulary->members()) return;
  for (const JsonMember& member : *vocabulary->members()) {
    if (const int64_t* token = member.value.integer()) add(member.name, *token);
  }
}

void ByteLevelVocabulary::add(const std::string& letters, int64_t token) {
  if (token < 0 || token >= kMostTokens) return;
  if (static_cast<size_t>(token) >= pieces_.size()) pieces_.resize(static_cast<size_t>(token) + 1);
  pieces_[token] = bytes_of(letters);
}

std::string ByteLevelVocabulary::decode(const std::vector<int>& tokens) const {
  std::string text;
  for (const int token : tokens) {
    if (token >= 0 && static_cast<size_t>(token) < pieces_.size()) text += pieces_[token];
  }
  return text;
}

}  // namespace mobilemoe

// Ids to text for tokenizers with a byte-level vocabulary (GPT-2, Llama 3 and ours). The other way needs the merges and
// the splitting rules of the Python package.
#pragma once

#include <string>
#include <vector>

namespace mobilemoe {

class ByteLevelVocabulary {
 public:
  // Reads a tokenizer.json. Where there is none, or one of another kind, the vocabulary stays empty; throws Error(file)
  // if it is damaged.
  explicit ByteLevelVocabulary(const std::string& path);

  bool is_empty() const { return pieces_.empty(); }
  std::string decode(const std::vector<int>& tokens) const;  // ids without text, like special tokens, give nothing

 private:
  void add(const std::string& letters, int64_t token);

  std::vector<std::string> pieces_;  // the bytes of each id
};

}  // namespace mobilemoe

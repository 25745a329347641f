// Fuzzers that start from a valid file: the input is a list of edits to it, so that most inputs get past the first
// checks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mobilemoe::fuzz {

// Three bytes an edit: place (16 bits, modulo the size), new value. A last odd byte cuts the text, to that many 256ths.
inline void edit(std::string& text, const uint8_t* data, size_t size) {
  for (; size >= 3 && !text.empty(); data += 3, size -= 3) {
    text[static_cast<size_t>(data[0] | data[1] << 8) % text.size()] = static_cast<char>(data[2]);
  }
  if (size == 1) text.resize(text.size() * data[0] / 256);
}

}  // namespace mobilemoe::fuzz

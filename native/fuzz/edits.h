// Fuzzers that start from a valid file: the input is a list of edits to it, so that most inputs get past the first
// checks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mobilemoe::fuzz {

// Every three bytes of the input are an edit: a place (16 bits, modulo the size) and its new value. If one byte is left
// over, the text is cut to that many 256ths of its length.
inline void edit(std::string& text, const uint8_t* data, size_t size) {
  for (; size >= 3 && !text.empty(); data += 3, size -= 3) {
    text[static_cast<size_t>(data[0] | data[1] << 8) % text.size()] = static_cast<char>(data[2]);
  }
  if (size == 1) text.resize(text.size() * data[0] / 256);
}

}  // namespace mobilemoe::fuzz

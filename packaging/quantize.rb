# A Homebrew formula that builds from source. The release workflow fills in the address and the hash of the source archive.
class Quantize < Formula
  desc "Turns checkpoints into quantized artifacts, and measures what was lost"
  homepage "https://github.com/OWNER/REPOSITORY"
  url "https://github.com/OWNER/REPOSITORY/archive/refs/tags/vVERSION.tar.gz"
  sha256 "SHA256"
  license any_of: ["MIT", "Apache-2.0"]

  depends_on "rust" => :build

  def install
    system "cargo", "install", *std_cargo_args
    generate_completions_from_executable(bin/"quantize", "completions")
    system bin/"quantize", "man", "--dir", man1
    pkgshare.install "tests/fixtures/tiny-llama"
  end

  test do
    system bin/"quantize", "--to", "q4_k_m", pkgshare/"tiny-llama", "-o", testpath/"tiny.gguf"
    assert_match "every block sound", shell_output("#{bin}/quantize verify #{testpath}/tiny.gguf")
  end
end

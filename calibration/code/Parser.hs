{-# LANGUAGE LambdaCase #-}
-- | A parser for a little JSON, in the applicative style, and a pretty printer.
module Main (main) where

import Control.Applicative
import Data.Char (chr, isDigit, isHexDigit, isSpace)
import Data.List (intercalate)
import qualified Data.Map.Strict as Map
import Numeric (readHex)

data Value
  = Null
  | Bool Bool
  | Number Double
  | Str String
  | Array [Value]
  | Object (Map.Map String Value)
  deriving (Eq, Show)

newtype Parser a = Parser { runParser :: String -> Maybe (a, String) }

instance Functor Parser where
  fmap f (Parser p) = Parser $ \s -> case p s of
    Nothing        -> Nothing
    Just (a, rest) -> Just (f a, rest)

instance Applicative Parser where
  pure a = Parser $ \s -> Just (a, s)
  Parser pf <*> Parser pa = Parser $ \s -> do
    (f, rest)  <- pf s
    (a, rest') <- pa rest
    pure (f a, rest')

instance Monad Parser where
  Parser p >>= k = Parser $ \s -> p s >>= \(a, rest) -> runParser (k a) rest

instance Alternative Parser where
  empty = Parser (const Nothing)
  Parser p <|> Parser q = Parser $ \s -> p s <|> q s

satisfy :: (Char -> Bool) -> Parser Char
satisfy ok = Parser $ \case
  (c : cs) | ok c -> Just (c, cs)
  _               -> Nothing

char :: Char -> Parser Char
char = satisfy . (==)

token :: Parser a -> Parser a
token p = p <* many (satisfy isSpace)

symbol :: Char -> Parser Char
symbol = token . char

keyword :: String -> a -> Parser a
keyword w v = v <$ token (traverse char w)

sepBy :: Parser a -> Parser b -> Parser [a]
sepBy p sep = ((:) <$> p <*> many (sep *> p)) <|> pure []

number :: Parser Double
number = token $ do
  sign  <- optional (char '-')
  whole <- some (satisfy isDigit)
  frac  <- optional (char '.' *> some (satisfy isDigit))
  let text = whole ++ maybe "" ('.' :) frac
      x    = read (if frac == Nothing then text ++ ".0" else text)
  pure (maybe x (const (negate x)) sign)

string :: Parser String
string = token (char '"' *> many piece <* char '"')
  where
    piece = satisfy (`notElem` "\"\\") <|> (char '\\' *> escape)
    escape = ('\n' <$ char 'n') <|> ('\t' <$ char 't') <|> unicode <|> satisfy (`elem` "\"\\/")
    unicode = do
      _  <- char 'u'
      hs <- sequenceA (replicate 4 (satisfy isHexDigit))
      pure (chr (fst (head (readHex hs))))

value :: Parser Value
value =
      keyword "null" Null
  <|> keyword "true" (Bool True)
  <|> keyword "false" (Bool False)
  <|> Number <$> number
  <|> Str <$> string
  <|> Array <$> (symbol '[' *> (value `sepBy` symbol ',') <* symbol ']')
  <|> Object . Map.fromList <$> (symbol '{' *> (pair `sepBy` symbol ',') <* symbol '}')
  where pair = (,) <$> string <* symbol ':' <*> value

pretty :: Int -> Value -> String
pretty n = \case
  Array vs@(_ : _) -> block '[' ']' (map (pretty (n + 2)) vs)
  Object m | not (Map.null m) ->
    block '{' '}' [show k ++ ": " ++ pretty (n + 2) v | (k, v) <- Map.toList m]
  Array _  -> "[]"
  Object _ -> "{}"
  Str s    -> show s
  Number x -> show x
  Bool b   -> if b then "true" else "false"
  Null     -> "null"
  where
    block open close xs =
      open : '\n' : intercalate ",\n" (map (replicate (n + 2) ' ' ++) xs)
        ++ '\n' : replicate n ' ' ++ [close]

main :: IO ()
main = interact $ \s -> case runParser (many (satisfy isSpace) *> value) s of
  Just (v, "")   -> pretty 0 v ++ "\n"
  Just (_, rest) -> "left over: " ++ take 20 rest ++ "\n"
  Nothing        -> "no parse\n"

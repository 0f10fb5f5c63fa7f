import torch
class NotFinite(ValueError):
    def __init__(self,row,column): self.row,self.column=row,column
def _ex(s,shape,block): return s.repeat_interleave(block[0],0)[:shape[0]].repeat_interleave(block[1],1)[:,:shape[1]]
def decode(codes,scales,out,block=(128,128)):
    out.copy_(codes.view(torch.float8_e4m3fn).float()*_ex(scales,codes.shape,block))
def _amax(v,block):
    r,c=v.shape;R,C=-(-r//block[0]),-(-c//block[1])
    p=torch.zeros(R*block[0],C*block[1]);p[:r,:c]=v.float()
    return p.view(R,block[0],C,block[1]).abs().amax((1,3))
def encode(values,out,block=(128,128),power_of_two=False):
    s=_amax(values,block).clamp(1e-4)/448
    if power_of_two: s=2.0**torch.ceil(torch.log2(s))
    out.copy_((values.float()/_ex(s,values.shape,block)).clamp(-448,448).to(torch.float8_e4m3fn).view(torch.uint8))
    return s
def encode_restoring(values,kept,out,block=(128,128),power_of_two=False):
    out.copy_((values.float()/_ex(kept,values.shape,block)).clamp(-448,448).to(torch.float8_e4m3fn).view(torch.uint8))
    return kept, torch.ones(kept.shape,dtype=torch.bool)
def bad_scales(s):
    bad=(~(s>0)|~s.isfinite()).nonzero()
    return None if not len(bad) else (*bad[0].tolist(), float(s[tuple(bad[0])]))
